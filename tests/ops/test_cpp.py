"""The C++ kernels on every instruction set, and how they come to be built."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.backends import cpp_build
from tests.helpers.operator_cases import (
    EXPLICIT_GRIDS,
    LAYOUTS,
    check,
    make_map,
    require,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def kernels():
    require('cpp')
    return torch.ops.pelk_mm_cpp


@pytest.fixture(params=['avx512', 'avx2', 'baseline'])
def poisoned(request, kernels):
    """Kernels of one instruction set, whose scratch memory is full of NaN."""
    if request.param not in kernels.instruction_sets():
        pytest.skip(f'this CPU has no {request.param}')
    before = kernels.use_instruction_set(request.param)
    kernels.set_poison_scratch(True)
    yield
    assert kernels.set_poison_scratch(False)
    assert kernels.use_instruction_set(before) == request.param


# Channels: fewer than a vector, a whole one, one more; widths: below, at and
# beyond the tiles of 4, 5, 6, 8 and 14 columns.
@pytest.mark.parametrize(
    'channels,height,width',
    [(1, 5, 1), (16, 3, 6), (17, 4, 13), (7, 9, 14), (4, 2, 15), (9, 6, 29)],
)
@pytest.mark.parametrize('kernel_size', [13, 51])
def test_poisoned(poisoned, channels, height, width, kernel_size):
    check(
        'cpp',
        (2, channels, height, width),
        SharingGrid(kernel_size),
        layout='slice',
    )


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float64, torch.bfloat16]
)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_poisoned_layouts(poisoned, dtype, layout):
    check('cpp', (1, 18, 6, 11), SharingGrid(31), dtype, layout)


@pytest.mark.parametrize('name', EXPLICIT_GRIDS)
def test_poisoned_grids(poisoned, name):
    check('cpp', (1, 3, 17, 12), EXPLICIT_GRIDS[name])


def test_poison_is_poison(kernels):
    """The check above would notice: scratch that is read comes back NaN."""
    kernels.set_poison_scratch(True)
    try:
        x = make_map((1, 3, 4, 4))
        x[0, 0, 0, 0] = torch.nan
        y = kernels.forward(
            x, torch.ones(3, 1, 9, 9), None, SharingGrid(13).sizes, False
        )
        assert y[0, 0].isnan().all()
        assert not y[0, 1:].isnan().any()
    finally:
        kernels.set_poison_scratch(False)


def test_large_map_in_bands_of_rows(kernels):
    """One image of few channels is shared among the threads by rows."""
    check('cpp', (1, 2, 70, 41), SharingGrid(31))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('size', [(1, 7), (2, 3), (5, 9)])
def test_threads_without_work(poisoned, threads, size):
    """Those that have no row of their own still help with clean scratch."""
    for _ in range(20):
        check('cpp', (1, 2, *size), SharingGrid(31))


def test_threads_do_not_change_the_result(kernels, threads):
    x, g = make_map((3, 20, 19, 21)), make_map((3, 20, 19, 21))
    w, sizes = torch.randn(20, 1, 9, 9), SharingGrid(13).sizes
    torch.set_num_threads(1)
    expected = kernels.forward(x, w, None, sizes, True)
    torch.set_num_threads(threads)
    first = kernels.weight_grad(x, g, sizes)
    both = kernels.backward(x, w, g, sizes, True)
    assert torch.equal(both[1], first)
    assert torch.equal(kernels.forward(x, w, None, sizes, True), expected)
    assert torch.equal(kernels.weight_grad(x, g, sizes), first)
    for again, once in zip(
        kernels.backward(x, w, g, sizes, True), both, strict=True
    ):
        assert torch.equal(again, once)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan(kernels):
    x = make_map((1, 16, 8, 16)).mul(100).reshape(1, 1, 1, -1)
    x[..., :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.00390625])
    one = SharingGrid.from_sizes([1]).sizes
    y = kernels.forward(
        x.bfloat16(),
        torch.full((1, 1, 1, 1), 1.0078125, dtype=torch.bfloat16),
        None,
        one,
        False,
    )
    expected = (x.bfloat16().float() * 1.0078125).bfloat16()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(0), expected.nan_to_num(0))


# ------------------------------------------------------------------ building

#: Stands in for the build: seconds instead of a minute, same code around it.
QUICK_BUILD = """
import sys
from pathlib import Path
from unittest import mock
import torch
from torch.utils import cpp_extension
from pelk_mm.ops.backends import cpp_build

def load(name, sources, build_directory, **kwargs):
    with Path(sys.argv[1], 'builds').open('a') as file:
        file.write('built')
    import time
    time.sleep(1)
    Path(build_directory, name + '.so').write_text('')

cpp_extension.load = load
torch.ops.load_library = lambda path: Path(path).read_text()
print(cpp_build.load_library())
"""

#: What a user does, with the warnings that he would see.
USE = """
import logging, sys
logging.basicConfig(format='LOGGED %(name)s %(message)s')
import torch
from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
x, w = torch.randn(1, 3, 20, 20), torch.randn(3, 1, 13, 13)
grid = SharingGrid(51)
for _ in range(2):
    assert peripheral_conv2d(x, w, grid).shape == x.shape
print('REASON', available_backends()['cpp'])
try:
    peripheral_conv2d(x, w, grid, backend='cpp')
except RuntimeError as error:
    print('RAISED', error)
    cause = error.__cause__ or error.__context__
    print('CAUSE', type(cause).__name__)
"""


def run_python(code, *arguments, **environment):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, '-c', code, *arguments],
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
        capture_output=True,
    )


def assert_falls_back(result, reason):
    """One line logged, the reason told, the cause chained, no crash."""
    assert result.returncode == 0, result.stderr
    logged = [
        line
        for line in result.stderr.splitlines()
        if line.startswith('LOGGED pelk_mm') and 'another' in line
    ]
    assert len(logged) == 1, result.stderr
    assert reason in logged[0]
    told = dict(line.split(' ', 1) for line in result.stdout.splitlines())
    assert reason in told['REASON']
    assert reason in told['RAISED']
    assert told['CAUSE'] not in ('NoneType', 'BackendError')


def test_no_compiler(tmp_path):
    result = run_python(
        USE, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX='/nowhere/c++'
    )
    assert_falls_back(result, 'could not be built')
    assert not list(tmp_path.glob('*/build-*'))


def test_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / 'cache'
    file.write_text('')  # not a folder: stops root too
    result = run_python(USE, TORCH_EXTENSIONS_DIR=str(file))
    assert_falls_back(result, 'could not be built')


def test_library_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    folder = tmp_path / f'pelk_mm_cpp_{cpp_build._key()}'
    folder.mkdir()
    (folder / 'pelk_mm_cpp.so').write_text('no library')
    result = run_python(USE, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert_falls_back(result, 'could not be built')


@pytest.mark.slow
def test_two_processes_build_once(tmp_path):
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'TORCH_EXTENSIONS_DIR': str(tmp_path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', QUICK_BUILD, str(tmp_path)],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (tmp_path / 'builds').read_text() == 'built'
    assert outputs[0][0] == outputs[1][0]


def test_lock_of_a_killed_process(tmp_path):
    """The system takes the lock back; what was half built is cleared away."""
    folder = tmp_path / f'pelk_mm_cpp_{cpp_build._key()}'
    half_built = folder / 'build-killed'
    half_built.mkdir(parents=True)
    (half_built / 'lock').write_text('')
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import fcntl, sys, time; f = open(sys.argv[1], "w");'
            'fcntl.flock(f, fcntl.LOCK_EX); print("held", flush=True);'
            'time.sleep(600)',
            str(folder / 'lock'),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == 'held\n'
    with (folder / 'lock').open('w') as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    result = run_python(
        QUICK_BUILD, str(tmp_path), TORCH_EXTENSIONS_DIR=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'builds').read_text() == 'built'
    assert not half_built.exists()


def test_compiler_that_fails_says_so(tmp_path):
    compiler = tmp_path / 'c++'
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = -v ] && exec g++ -v\n'
        'echo "the disk is full" >&2; exit 1\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    result = run_python(
        USE, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX=str(compiler)
    )
    assert_falls_back(result, 'could not be built')


def test_build_ahead_reports_failure_and_succeeds(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'pelk_mm.ops.backends'],
        cwd=ROOT,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'CXX': '/nowhere/c++',
            'TORCH_EXTENSIONS_DIR': str(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert result.returncode == 0
    assert 'could not be built' in result.stdout


def test_key_depends_on_sources_and_flags(monkeypatch, tmp_path):
    key = cpp_build._key()
    assert key == cpp_build._key()
    monkeypatch.setattr(cpp_build, '_flags', lambda: ['-O0'])
    assert cpp_build._key() != key
    monkeypatch.undo()
    (tmp_path / 'a.cpp').write_text('int a;')
    monkeypatch.setattr(cpp_build, '_SOURCES', tmp_path)
    assert cpp_build._key() != key


def test_import_builds_nothing(tmp_path):
    result = run_python(
        'import pelk_mm.ops, sys; '
        'assert "torch.utils.cpp_extension" not in sys.modules',
        TORCH_EXTENSIONS_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_build_from_scratch(tmp_path):
    require('cpp')
    result = run_python(USE, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert 'REASON None' in result.stdout
    assert 'RAISED' not in result.stdout
    assert list(tmp_path.glob('pelk_mm_cpp_*/pelk_mm_cpp.so'))
