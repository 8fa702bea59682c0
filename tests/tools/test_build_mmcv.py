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
if '--target' in words:
    home = pathlib.Path(words[words.index('--target') + 1], 'nvidia/cu13')
    (home / 'lib').mkdir(parents=True)
    (home / 'lib/libcudart.so.13').touch()
""",
    'torch/__init__.py': """
import os
from types import SimpleNamespace
__version__ = '2.14.1'
cuda = SimpleNamespace(is_available=lambda: 'A_GPU' in os.environ)
version = SimpleNamespace(cuda=os.environ.get('TORCH_CUDA'), hip=None)
__config__ = SimpleNamespace(show=lambda: '  - C++ Version: 202002')
""",
    'torch/utils/__init__.py': '',
    'torch/utils/cpp_extension.py': """
import os
CUDA_HOME = os.environ.get('CUDA_HOME')
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
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
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


@pytest.fixture
def for_gpus(build, tmp_path):
    """A build of mmcv by a torch for some CUDA; what it found, and says."""
    (tmp_path / 'mmcv' / '_ext.py').touch()

    def run(cuda: str = '13.0', nvcc: str | None = None, **variables: str):
        if nvcc:
            program = tmp_path / 'toolkit' / 'bin' / 'nvcc'
            program.parent.mkdir(parents=True)
            program.write_text(f'#!/bin/sh\necho "tools, release {nvcc}, V1"')
            program.chmod(0o755)
        done = build(
            TORCH_CUDA=cuda, CUDA_HOME=str(tmp_path / 'toolkit'), **variables
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / 'variables').read_text().splitlines()
        return dict(line.split('=', 1) for line in lines if '=' in line), done

    return run


@pytest.mark.parametrize('nvcc', ['13.0', '13.2'])
def test_for_gpus_with_a_toolkit(for_gpus, tmp_path, nvcc):
    headers = tmp_path / 'nvidia' / 'cu13' / 'include'
    headers.mkdir(parents=True)
    found, done = for_gpus(nvcc=nvcc, A_GPU='1', CPATH='/mine')
    assert wheels_asked_for(tmp_path) == [False]
    assert found['CUDA_HOME'] == str(tmp_path / 'toolkit')
    # torch's headers include those that came with it.
    mine, *came = found['CPATH'].split(os.pathsep)
    assert mine == '/mine' and str(headers) in came
    assert 'PyPI' not in done.stdout


@pytest.mark.parametrize('nvcc', [None, '12.4'])
@pytest.mark.parametrize('why', ['A_GPU', 'FORCE_CUDA'])
def test_for_gpus_with_an_nvcc_of_pypi(for_gpus, tmp_path, nvcc, why):
    found, done = for_gpus(nvcc=nvcc, **{why: '1'})
    assert wheels_asked_for(tmp_path) == [False]
    assert found['CUDA_HOME'].endswith('/nvidia/cu13')
    assert not Path(found['CUDA_HOME']).exists()  # for the build alone
    here = 'that' if nvcc else 'none'
    assert f'CUDA 13.0, {here}' in done.stdout
    calls = (tmp_path / 'calls').read_text()
    assert 'nvidia-cuda-nvcc==13.0.*' in calls


@pytest.mark.parametrize('nvcc', [None, '13.0'])
def test_on_a_gpu_with_no_nvcc_to_have(for_gpus, tmp_path, nvcc):
    """The operators run on CPUs then, as those of pip's cache may."""
    found, done = for_gpus('12.8', nvcc, A_GPU='1')
    assert wheels_asked_for(tmp_path) == [True]
    assert found['FORCE_CUDA'] == '0' and found['CUDA_VISIBLE_DEVICES'] == ''
    (line,) = (x for x in done.stdout.splitlines() if 'warning' in x)
    assert 'CUDA 12.8' in line and 'will run on CPUs' in line


@pytest.mark.parametrize('cuda', [None, '12.8'])
def test_for_gpus_that_cannot_be(build, tmp_path, cuda):
    variables = {'TORCH_CUDA': cuda} if cuda else {}
    done = build(FORCE_CUDA='1', **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ') and (cuda or 'without CUDA') in line
    assert not wheels_asked_for(tmp_path)


def test_a_build_that_fails_replaces_nothing(build, tmp_path):
    done = build('broken==0')
    assert done.returncode == 1
    assert 'no room' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: this failed')
    assert '--force-reinstall' not in (tmp_path / 'calls').read_text()
