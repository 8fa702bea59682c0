"""tools/mmcv_build: what mmcv's operators are built with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / 'tools' / 'mmcv_build'
# A compiler that writes down its arguments, and a header where -o says.
COMPILER = """#!/bin/bash
echo "$*" >> calls
while [ $# -gt 1 ]; do [ "$1" = -o ] && { touch "$2"; }; shift; done
"""
# What it is run with in place of pip, torch and mmcv.
PACKAGES = {
    'pip/__main__.py': """
import os, pathlib, sys
words = sys.argv[1:]
with open('calls', 'a') as file:
    print(*words, file=file)
if 'wheel' in words and '-w' in words:
    print('  [76/77] c++ a.cpp')
    folder = pathlib.Path(words[words.index('-w') + 1])
    (folder / 'mmcv-2.1.0-py3-none-any.whl').touch()
    with open('variables', 'w') as file:
        file.writelines(f'{name}={os.environ[name]}\\n' for name in os.environ)
    sys.exit('no room' if 'broken==0' in words else 0)
""",
    'torch/__init__.py': """
from types import SimpleNamespace
cuda = SimpleNamespace(is_available=lambda: False)
__config__ = SimpleNamespace(show=lambda: '  - C++ Version: 202002')
""",
    'mmcv/__init__.py': '',
    'pip/__init__.py': '',
}


@pytest.fixture
def compile_(tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            [FOLDER / 'cxx.sh', *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                'MMCV_CXX': f'{compiler} -m64',
                'CXX_APPEND_FLAGS': '-std=c++20 -g0',
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / 'calls').read_text().splitlines()
        (tmp_path / 'calls').unlink()
        return calls

    return run


def test_headers_are_compiled_once_with_the_flags_of_the_files(
    compile_, tmp_path
):
    header = tmp_path / 'torch_headers.h'
    flags = '-m64 {}-g -fPIC -std=c++17 -std=c++20 -g0'
    files = ['-MMD', '-MF', 'a.d', '-c', 'a.cpp', '-o', 'a.o']
    first, second = compile_('-g', '-fPIC', *files, '-std=c++17')
    assert first.startswith(flags.format('') + ' -x c++-header')
    assert 'a.' not in first
    assert second == (
        flags.format(f'-include {header} ') + ' -MMD -MF a.d -c a.cpp -o a.o'
    )
    (third,) = compile_('-g', '-c', 'b.cpp', '-o', 'b.o')
    assert '-c b.cpp -o b.o' in third


def test_it_links_as_the_compiler_does(compile_):
    (call,) = compile_('a.o', '-shared', '-o', 'a.so')
    assert call == '-m64 a.o -shared -o a.so -std=c++20 -g0'


def test_setup_py_runs_with_python_3_13(tmp_path):
    """As mmcv's: a function that executes a file and looks at its locals."""
    (tmp_path / 'setup.py').write_text(
        'def version():\n'
        '    exec("__version__ = 1")\n'
        '    return locals()["__version__"]\n'
        'exec("outside = 2")\n'
        'exec("inside = 3", names := {})\n'
        'print(version(), outside, names["inside"])'
    )
    out = subprocess.check_output(
        [sys.executable, 'setup.py'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(FOLDER)},
        text=True,
    )
    assert out == '1 2 3\n'


@pytest.fixture
def build(tmp_path):
    for name, text in PACKAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(wanted: str = 'mmcv==2.1.0', **variables: str):
        return subprocess.run(
            [sys.executable, FOLDER / 'build_mmcv.py', wanted],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(tmp_path), **variables},
            capture_output=True,
            text=True,
        )

    return run


def wheels_asked_for(folder: Path) -> list[bool]:
    """Of every build, whether it may come from pip's cache."""
    calls = (folder / 'calls').read_text().splitlines()
    return ['--no-cache-dir' not in call for call in calls if ' -w ' in call]


def test_mmcv_is_built_for_this_torch(build, tmp_path):
    (tmp_path / 'mmcv' / '_ext.py').touch()
    done = build(CXX='g++-12')
    assert done.returncode == 0, done.stderr
    assert '  compiled [76/77]\n' in done.stdout
    assert wheels_asked_for(tmp_path) == [True]
    variables = (tmp_path / 'variables').read_text().splitlines()
    assert {
        'MMCV_WITH_OPS=1',
        'MMCV_CXX=g++-12',
        f'CXX={FOLDER / "cxx.sh"}',
        'CXX_APPEND_FLAGS=-std=c++20 -g0',
        f'PYTHONPATH={tmp_path}{os.pathsep}{FOLDER}',
    } <= set(variables)
    assert 'mmcv-2.1.0-py3-none-any.whl' in (tmp_path / 'calls').read_text()


def test_what_the_cache_has_is_not_trusted(build, tmp_path):
    done = build()
    assert done.returncode == 1
    assert wheels_asked_for(tmp_path) == [True, False]
    assert 'its operators do not run' in done.stderr


def test_a_build_for_gpus_never_comes_from_the_cache(build, tmp_path):
    (tmp_path / 'mmcv' / '_ext.py').touch()
    assert build(FORCE_CUDA='1').returncode == 0
    assert wheels_asked_for(tmp_path) == [False]


def test_a_build_that_fails_replaces_nothing(build, tmp_path):
    done = build('broken==0')
    assert done.returncode == 1
    assert 'no room' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: this failed')
    assert '--force-reinstall' not in (tmp_path / 'calls').read_text()
