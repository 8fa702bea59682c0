"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from mmengine.fileio import LocalBackend, register_backend

#: Name of :class:`AtomicLocalBackend` in mmengine's ``backend_args``.
ATOMIC_BACKEND = 'pelk_mm.atomic'


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` at the end.

    Whatever was at ``path`` stays until the new file is whole and on disk. If
    the body raises, or is interrupted, the temporary file is removed. A
    process that is killed leaves it behind: see :func:`remove_leftovers`.
    The folder is made if need be. An OSError has a ``filename``, also where
    the system sets none, as on a full disk.
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
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Make a folder if need be, and a file in it; an OSError says why not."""
    os.makedirs(folder, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def write_json(path: str | Path, content: object) -> None:
    """Write JSON as people read it, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n')


def _sync_folder(folder: Path) -> None:
    """Bring the new name to disk too, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(
    folder: str | Path, suffix: str, stem: str | None = None
) -> list[Path]:
    """Remove, and return, what killed processes left of :func:`atomic_path`.

    Only files with this suffix and, if one is given, this stem. Files of
    processes that run on this machine stay. The folder need not exist.
    """
    name = '.+' if stem is None else re.escape(stem)
    pattern = rf'\.{name}\.(\d+){re.escape(suffix)}'
    removed = []
    for path in Path(folder).glob(f'.*{suffix}'):
        match = re.fullmatch(pattern, path.name)
        if match and path.is_file() and not _runs(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _runs(pid: int) -> bool:
    """Whether there is a process of that number, other than this one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, never half-written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes; an existing file survives until they are on disk."""
        with atomic_path(filepath) as path:
            path.write_bytes(obj)


register_backend(ATOMIC_BACKEND, AtomicLocalBackend, force=True)
