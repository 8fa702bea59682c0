"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

#: Name of :class:`AtomicLocalBackend` in mmengine's ``backend_args``.
ATOMIC_BACKEND = 'pelk_mm.atomic'


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` at the end.

    Whatever was at ``path`` stays until the new file is whole and on disk. If
    the body raises, or is interrupted, the temporary file is removed.

    Args:
        path (str | Path): The file to write; its folder is made if need be.

    Yields:
        Path: Where to write instead.

    Example:
        >>> with atomic_path('figure.png') as path:
        ...     figure.savefig(path)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers tell the format by it.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, never half-written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; an existing file survives until they are on disk."""
        with atomic_path(filepath) as path:
            path.write_bytes(obj)


register_backend(ATOMIC_BACKEND, AtomicLocalBackend, force=True)
