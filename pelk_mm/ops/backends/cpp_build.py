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

#: One name on every system: what is inside decides how it is loaded.
NAME = 'libpelk_mm.so'
#: The folder of them.
SOURCES = Path(__file__).with_name('csrc')
#: -ffp-contract: a multiply-add is one instruction where there is one.
_FLAGS = (*('-std=c++17', '-O3', '-ffp-contract=fast'), '-fvisibility=hidden')
#: What single files are compiled with on x86-64; which of them run is found
#: out when the library is loaded.
_X86_FLAGS = {
    'kernel_avx2': ('-mavx2', '-mfma'),
    'kernel_avx512': (
        *('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma'),
        '-mprefer-vector-width=512',
    ),
}
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
    packaged = Path(__file__).with_name(NAME)
    if packaged.exists():
        return packaged
    library = cache_root() / _key() / NAME
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(library.parent):
            if not library.exists():  # otherwise another process was faster
                compile_library(library)
    return library


def cache_root() -> Path:
    """The folder in which compiled libraries are kept."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'pelk_mm'


def find_compiler() -> list[str]:
    """The command of a C++17 compiler: ``$CXX``, or what there is."""
    given = shlex.split(os.environ.get('CXX', ''))
    if given and not shutil.which(given[0]):
        raise RuntimeError(
            f'the environment variable CXX names the compiler {given[0]}, '
            'which is not found: install it, name another one, or unset CXX'
        )
    if given:
        return given
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise RuntimeError(
        'there is no C++ compiler: install g++ or clang++, or name one with '
        'the environment variable CXX'
    )


def compile_library(library: Path) -> None:
    """Compile the kernels for what ``$CXX`` compiles for.

    The file is there whole or not at all. Raises as :func:`find_library`.
    """
    compiler = find_compiler()
    flags, own_flags, link_flags = compiler_flags(compiler)
    text = 'compiling the CPU kernels of pelk_mm, up to a minute, once: %s'
    _logger.warning(text, library)
    with tempfile.TemporaryDirectory('', 'build-', library.parent) as folder:

        def compiled(source: Path) -> str:
            made = os.path.join(folder, source.stem + '.o')
            own = own_flags.get(source.stem, ())
            run_compiler(
                [*compiler, *flags, *own, '-c', str(source), '-o', made]
            )
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sorted(SOURCES.glob('*.cpp'))))
        built = os.path.join(folder, library.name)
        run_compiler([*compiler, *link_flags, *objects, '-o', built])
        # What a power cut leaves empty would crash whoever loads it.
        with open(built, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(built, library)


def compiler_flags(
    compiler: list[str],
) -> tuple[list[str], dict[str, tuple[str, ...]], list[str]]:
    """For all files, for single ones and for linking, by what it targets.

    The second are by the file's name without its ending.
    """
    # Unlike -dumpmachine they follow -m32, and zig has them for any -target.
    macros = run_compiler([*compiler, '-dM', '-E', '-x', 'c++', os.devnull])

    def targets(macro: str) -> bool:
        return f'#define {macro} ' in macros

    flags, link = [*_FLAGS], ['-shared']
    if targets('_WIN32'):
        # It comes without the compiler's DLLs.
        link += '-static-libgcc', '-static-libstdc++'
    else:
        flags.append('-fPIC')
    if targets('__linux__'):
        link.append(f'-Wl,--version-script={SOURCES / "exports.map"}')
    if not targets('__APPLE__'):
        link.append('-s')
    return flags, _X86_FLAGS if targets('__x86_64__') else {}, link


def run_compiler(command: list[str]) -> str:
    """What it printed. Raises RuntimeError with the command if it fails."""
    result = subprocess.run(
        command, capture_output=True, text=True, errors='replace'
    )
    if result.returncode:
        said = result.stderr.strip() or f'exit status {result.returncode}'
        lines = said.splitlines()
        why = next((line for line in lines if 'error:' in line), lines[0])
        text = f'{command[0]} failed: {why}\n{shlex.join(command)}\n{said}'
        raise RuntimeError(text)
    return result.stdout


def _key() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
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
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when its holder dies."""
    with (folder / 'lock').open('w') as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            # No such locks here: at worst the work is done twice, since each
            # process compiles in a folder of its own.
            pass
        else:
            # Whoever left these was killed: the lock is ours.
            for stale in folder.glob('build-*'):
                shutil.rmtree(stale, ignore_errors=True)
        yield
