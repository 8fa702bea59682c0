"""The library's C interface, called by a program under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pelk_mm.ops.backends.cpp_build import find_compiler

from .builds import ADDRESS, build

# Of undefined behaviour, what takes long to compile is left to
# `make sanitize`; AddressSanitizer finds most of that too.
_LEFT_OUT = '-fno-sanitize=null,alignment,object-size,pointer-overflow'
_ARGUMENTS = ('cases=300', 'work=60000')


@pytest.fixture(scope='module')
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The self-check, with the baseline kernels alone instrumented.

    It takes ten seconds of a core to compile, that of `make sanitize` a
    minute.
    """
    folder = tmp_path_factory.mktemp('native')
    try:
        compiler = find_compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    _skip_without_sanitizers(compiler, folder)
    program = folder / 'selfcheck'
    build(
        program,
        compiler,
        ('-O0', *ADDRESS, _LEFT_OUT),
        spared=('kernel_avx2', 'kernel_avx512', 'selfcheck'),
        wide=False,
    )
    return program


def _skip_without_sanitizers(compiler: list[str], folder: Path) -> None:
    source = folder / 'empty.cpp'
    source.write_text('int main() {}\n')
    command = [*compiler, *ADDRESS, str(source), '-o', str(folder / 'empty')]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f'{compiler[0]} has no sanitizers')


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(program), *_ARGUMENTS, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_random_calls(program: Path) -> None:
    result = _run(program)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'baseline: 900 calls are right' in result.stdout


def test_wrong_result_is_noticed(program: Path) -> None:
    result = _run(program, 'spoil=results', 'first=7')
    assert result.returncode == 1
    assert 'FAILED: grad_weight' in result.stdout
    assert 'again: selfcheck cases=1 seed=1 first=7' in result.stdout


def test_access_outside_of_a_tensor_is_noticed(program: Path) -> None:
    result = _run(program, 'spoil=memory', 'sets=baseline')
    assert result.returncode != 0
    assert 'heap-buffer-overflow' in result.stderr
    assert 'pelk::baseline' in result.stderr
