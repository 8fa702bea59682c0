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
#: For compiling and linking.
ADDRESS = ('-fsanitize=address,undefined', '-fno-sanitize-recover=all')
_THREAD = ('-fsanitize=thread',)
_WARNINGS = ('-Wall', '-Wextra', '-Wconversion', '-Werror', '-fsyntax-only')


def _commands(compiler: list[str]) -> dict[str, list[str]]:
    """How each file is compiled: with the flags that the library has."""
    flags, of_file, _ = cpp_build.compiler_flags(compiler)
    # g++ says that vectors wider than the machine's are passed in memory.
    flags += ['-Wno-psabi', f'-I{cpp_build.SOURCES}']
    sources = [*cpp_build.SOURCES.glob('*.cpp'), *_HERE.glob('*.cpp')]
    # Those of kernels take longest and go first.
    sources.sort(key=lambda source: not source.stem.startswith('kernel'))
    return {
        one.stem: [*compiler, *flags, *of_file.get(one.stem, ()), str(one)]
        for one in sources
    }


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
        spared (tuple[str, ...]): Files that are not worth them, without
            endings: they are compiled in no time.
        wide (bool): Whether vectors of 64 bytes are checked also where there
            are no instructions for them. Default: True.
    """
    commands = _commands(compiler)
    if wide:
        commands['selfcheck'].append('-DSELFCHECK_WIDE')
    else:
        del commands['kernel_wide']
    with tempfile.TemporaryDirectory() as folder:

        def compile(stem: str) -> str:
            object = os.path.join(folder, stem + '.o')
            more = ('-O0',) if stem in spared else flags
            cpp_build.run_compiler(
                [*commands[stem], *more, '-c', '-o', object]
            )
            return object

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile, commands))
        link = ['-pthread', *objects, '-o', str(program)]
        cpp_build.run_compiler([*compiler, *flags, *link])


def lint() -> None:
    """Let g++ and clang++, where they are installed, warn; that fails."""
    commands: list[list[str]] = []
    for name in ('g++', 'clang++'):
        if shutil.which(name):
            commands += _commands([name]).values()
        else:
            print(f'{name} is not installed: nothing is checked with it')

    def compile(command: list[str]) -> int:
        return subprocess.run([*command, *_WARNINGS]).returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if any(list(pool.map(compile, commands))):
            sys.exit(1)


def sanitize() -> None:
    """Run the self-check under every sanitizer, and say what is run."""
    compiler = cpp_build.find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, 'selfcheck'))

        def check(name: str, flags: tuple[str, ...], *runs: str) -> None:
            print(f'{name}: compiling with {" ".join(flags)}', flush=True)
            build(Path(program), compiler, flags)
            for run in runs:
                print(f'{name}: {run}', flush=True)
                words = run.replace('selfcheck', program).split()
                if subprocess.run(words).returncode:
                    sys.exit(f'{name} failed')

        check(
            'AddressSanitizer and UndefinedBehaviorSanitizer',
            ('-O1', '-g1', *ADDRESS),
            'selfcheck cases=10800 work=400000',
            'selfcheck cases=400 seed=2 work=8000000',
        )
        check(
            'ThreadSanitizer',
            ('-O1', '-g1', *_THREAD),
            'selfcheck cases=60 threads=16 work=40000000',
        )
        if shutil.which('valgrind'):
            run = 'valgrind -q --error-exitcode=1 selfcheck cases=6 work=50000'
            check('valgrind', ('-O1', '-g1'), run)
        else:
            print('valgrind is not installed: nothing is run under it')


def main(what: str = '', *arguments: str) -> None:
    if what == 'lint':
        lint()
    elif what == 'sanitize':
        sanitize()
    elif what == 'selfcheck' and len(arguments) == 1:
        build(Path(*arguments), cpp_build.find_compiler(), wide=False)
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main(*sys.argv[1:])
