"""Compiles the C++ kernels once per environment and keeps the result."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_NAME = 'pelk_mm_cpp'
_SOURCES = Path(__file__).with_name('csrc')
_logger = logging.getLogger('pelk_mm')


def load_library(verbose: bool = False) -> Path:
    """Make ``torch.ops.pelk_mm_cpp`` exist, compiling it if nobody has yet.

    The library is kept in ``$TORCH_EXTENSIONS_DIR``, or else in
    ``~/.cache/torch_extensions``, in a folder named after everything that it
    was made from. It holds kernels for several instruction sets and picks
    among them when it is loaded, so machines with different CPUs may share
    that folder. Raises whatever stood in the way: no compiler, no ninja, a
    folder that cannot be written, a library that cannot be loaded.
    """
    folder = cache_root() / f'{_NAME}_{_key()}'
    library = folder / f'{_NAME}.so'
    if library.exists():
        torch.ops.load_library(library)
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / 'lock'):
        if library.exists():  # another process was faster
            torch.ops.load_library(library)
        else:
            _compile(folder, library, verbose)
    return library


def cache_root() -> Path:
    """The folder in which compiled extensions are kept."""
    root = os.environ.get('TORCH_EXTENSIONS_DIR')
    if root:
        return Path(root)
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'torch_extensions'


def _flags() -> list[str]:
    flags = ['-O3', '-ffp-contract=fast', '-Wno-unknown-pragmas']
    # For the compiler alone: the linker must not add an OpenMP runtime, since
    # the threads to use are those of the runtime that torch has loaded.
    if sys.platform == 'linux' and torch.backends.openmp.is_available():
        flags.append('-fopenmp')
    return flags


def _sources() -> list[Path]:
    return sorted(_SOURCES.glob('*.cpp'))


def _key() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        if path.is_file():
            digest.update(f'{path.name}\0'.encode() + path.read_bytes())
    environment = (
        torch.__version__,
        torch.version.git_version,
        torch.compiled_with_cxx11_abi(),
        sys.implementation.cache_tag,
        platform.system(),
        platform.machine(),
        platform.libc_ver(),
        os.environ.get('CXX', ''),
        _flags(),
    )
    digest.update(repr(environment).encode())
    return digest.hexdigest()[:16]


def _compile(folder: Path, library: Path, verbose: bool) -> None:
    from torch.utils import cpp_extension  # slow to import, rarely needed

    _logger.warning(
        'compiling the CPU kernels of pelk_mm into %s, once; this takes about '
        'a minute',
        folder,
    )
    # Whoever left these was killed: the lock is ours.
    for stale in folder.glob('build-*'):
        shutil.rmtree(stale, ignore_errors=True)
    # torch's own lock file outlives a killed process and would be waited for
    # for ever: it gets a folder that nobody else has.
    build = Path(tempfile.mkdtemp(prefix='build-', dir=folder))
    try:
        cpp_extension.load(
            _NAME,
            [str(path) for path in _sources()],
            extra_cflags=_flags(),
            build_directory=str(build),
            with_cuda=False,
            is_python_module=False,
            verbose=verbose,
        )
        # It is loaded by now; under its final name it is for other processes.
        os.replace(build / library.name, library)
    finally:
        shutil.rmtree(build, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when its holder dies."""
    with path.open('w') as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            # No such locks here: at worst the work is done twice, since each
            # process compiles in a folder of its own.
            pass
        yield
