"""Finds the library of the C++ kernels, and compiles it where there is none.

Needs nothing but Python: setup.py runs this file where there is no torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_SOURCES = Path(__file__).with_name('csrc')
#: -ffp-contract: a multiply-add is one instruction where there is one.
_FLAGS = (
    *('-std=c++17', '-O3', '-fPIC', '-ffp-contract=fast'),
    '-fvisibility=hidden',
)
#: What single files are compiled with on x86-64; which of them run is found
#: out when the library is loaded.
_X86_FLAGS = {
    'kernel_avx2': ('-mavx2', '-mfma'),
    'kernel_avx512': (
        *('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'),
        '-mprefer-vector-width=512',
    ),
}
_SUFFIXES = {'Windows': '.dll', 'Darwin': '.dylib'}
_logger = logging.getLogger('pelk_mm')


def find_library() -> Path:
    """The library's file: that of the wheel, or one compiled here, once.

    What is compiled is kept in ``$XDG_CACHE_HOME/pelk_mm`` or else in
    ``~/.cache/pelk_mm``, in a folder named after everything that it was made
    from. It has kernels for several instruction sets and picks among them
    when it is loaded, so machines with different CPUs may share that folder.
    Raises OSError if the folder cannot be written, RuntimeError if there is
    no compiler or it fails.
    """
    name = 'libpelk_mm' + _SUFFIXES.get(platform.system(), '.so')
    packaged = Path(__file__).with_name(name)
    if packaged.exists():
        return packaged
    library = cache_root() / _key() / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(library.with_name('lock')):
            if not library.exists():  # otherwise another process was faster
                _logger.warning(
                    'compiling the CPU kernels of pelk_mm into %s, once; this '
                    'takes about a minute',
                    library.parent,
                )
                compile_library(library)
    return library


def cache_root() -> Path:
    """The folder in which compiled libraries are kept."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'pelk_mm'


def find_compiler() -> list[str]:
    """The command of a C++17 compiler: ``$CXX``, or what there is."""
    given = os.environ.get('CXX')
    if given:
        return shlex.split(given)
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise RuntimeError(
        'there is no C++ compiler: install g++ or clang++, or name one with '
        'the environment variable CXX'
    )


def compile_library(library: Path) -> None:
    """Compile the kernels; the file is there whole or not at all."""
    compiler = find_compiler()
    target = _run([*compiler, '-dumpmachine'])
    x86 = target.startswith(('x86_64', 'amd64'))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compile(source: Path) -> str:
            flags = _X86_FLAGS.get(source.stem, ()) if x86 else ()
            object = os.path.join(folder, source.stem + '.o')
            _run([*compiler, *_FLAGS, *flags, '-c', str(source), '-o', object])
            return object

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile, sorted(_SOURCES.glob('*.cpp'))))
        built = os.path.join(folder, library.name)
        link = ['-shared', '-s']
        if 'linux' in target:
            link.append(f'-Wl,--version-script={_SOURCES / "exports.map"}')
        _run([*compiler, *link, *objects, '-o', built])
        os.replace(built, library)


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        text = f'{shlex.join(command)} failed:\n{result.stderr.strip()}'
        raise RuntimeError(text)
    return result.stdout.strip()


def _key() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        digest.update(f'{path.name}\0'.encode() + path.read_bytes())
    environment = (
        platform.system(),
        platform.machine(),
        platform.libc_ver(),
        os.environ.get('CXX', ''),
        (_FLAGS, _X86_FLAGS),
    )
    digest.update(repr(environment).encode())
    return digest.hexdigest()[:16]


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
