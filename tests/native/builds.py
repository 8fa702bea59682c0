"""Compiles the self-check of the C++ kernels, and what is done with it.

``python -m tests.native.builds WHAT``, of which the compiler is ``$CXX`` or
what there is:

- ``lint``: warnings of g++ and of clang++.
- ``sanitize``: random calls under AddressSanitizer, UndefinedBehaviorSanitizer
  and ThreadSanitizer, and a few under valgrind.
- ``selfcheck OUT``: leaves the program at OUT, for this machine or another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pelk_mm.ops.backends import cpp_build

_HERE = Path(__file__).parent
_SANITIZED = ('-O1', '-g1', '-fno-sanitize-recover=all')
#: For both: instrument accesses and arithmetic.
ADDRESS = ('-fsanitize=address,undefined',)
_THREAD = ('-fsanitize=thread',)
_WARNINGS = ('-Wall', '-Wextra', '-Wconversion', '-Werror', '-fsyntax-only')


def sources() -> list[Path]:
    """The kernels' and the self-check's."""
    return sorted([*cpp_build._SOURCES.glob('*.cpp'), *_HERE.glob('*.cpp')])


def flags_of(compiler: list[str], source: Path) -> list[str]:
    """Those that the library's file is compiled with, or would be."""
    macros = _output([*compiler, '-dM', '-E', '-x', 'c++', os.devnull])
    x86 = '#define __x86_64__ ' in macros
    own = cpp_build._X86_FLAGS.get(source.stem, ()) if x86 else ()
    include = f'-I{cpp_build._SOURCES}'
    # A vector wider than the machine's is passed in memory, says g++.
    return [*cpp_build._FLAGS, *own, include, '-Wno-psabi']


def build(
    program: Path,
    compiler: list[str],
    flags: tuple[str, ...] = (),
    *,
    spared: tuple[str, ...] = (),
    wide: bool = True,
) -> None:
    """Compile the self-check.

    Args:
        program (Path): What to write.
        compiler (list[str]): The command.
        flags (tuple[str, ...]): Further ones, of compiler and linker.
        spared (tuple[str, ...]): Stems of files to compile without ``flags``.
        wide (bool): Whether to add the kernels for vectors of 64 bytes that
            need no instructions for them. Default: True.
    """
    defines = ['-DSELFCHECK_WIDE'] if wide else []
    with tempfile.TemporaryDirectory() as folder:

        def compile(source: Path) -> str:
            object = os.path.join(folder, source.stem + '.o')
            more = ['-O0'] if source.stem in spared else flags
            command = [*compiler, *flags_of(compiler, source), *defines, *more]
            _output([*command, '-c', str(source), '-o', object])
            return object

        # Those that take longest go first.
        chosen = [s for s in sources() if wide or s.stem != 'kernel_wide']
        chosen.sort(key=lambda source: 'kernel_' not in source.stem)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile, chosen))
        link = ['-pthread', *objects, '-o', str(program)]
        _output([*compiler, *flags, *link])


def lint() -> None:
    """Compile with warnings as errors by each compiler that is installed."""
    for name in ('g++', 'clang++'):
        if shutil.which(name) is None:
            print(f'{name} is not installed: its warnings are not checked')
            continue
        for source in sources():
            flags = flags_of([name], source)
            _show([name, *flags, *_WARNINGS, str(source)])


def sanitize() -> None:
    """Run the self-check under every sanitizer, and say what is run."""
    compiler = cpp_build.find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, 'selfcheck')

        def run(what: str, flags: tuple[str, ...], *calls: list[str]) -> None:
            print(f'{what}: compiling', flush=True)
            build(program, compiler, flags)
            for call in calls:
                print(f'{what}:', *call, flush=True)
                _show([*call[:-1], str(program), *call[-1].split()])

        run(
            'AddressSanitizer and UndefinedBehaviorSanitizer',
            (*_SANITIZED, *ADDRESS),
            ['cases=10800 work=400000'],
            ['cases=400 work=8000000 seed=2'],
        )
        run(
            'ThreadSanitizer',
            (*_SANITIZED, *_THREAD),
            ['cases=60 threads=16 work=40000000'],
        )
        if shutil.which('valgrind') is None:
            print('valgrind is not installed: not run')
        else:
            valgrind = ['valgrind', '--quiet', '--error-exitcode=1']
            run('valgrind', ('-O1', '-g1'), [*valgrind, 'cases=6 work=50000'])


def _output(command: list[str]) -> str:
    return cpp_build._run(command)


def _show(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        sys.exit(f'failed: {" ".join(command)}')


def main(what: str, *arguments: str) -> None:
    if what == 'lint':
        lint()
    elif what == 'sanitize':
        sanitize()
    elif what == 'selfcheck':
        build(Path(*arguments), cpp_build.find_compiler())
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main(*sys.argv[1:])
