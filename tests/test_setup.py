"""What is in the distributions, and that the library of a wheel runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from pelk_mm.ops.backends import cpp_build
from tests.helpers.compilers import made_up_compiler
from tests.helpers.operator_cases import require

BACKENDS = Path('pelk_mm', 'ops', 'backends')
LIBRARY = str(BACKENDS / cpp_build.NAME)
SOURCES = {
    f'{BACKENDS}/csrc/{path.name}' for path in cpp_build.SOURCES.iterdir()
}
MANYLINUX = 'manylinux_2_28_x86_64'


@pytest.fixture
def tree(root, tmp_path) -> Path:
    """The sources, to build in."""
    tree = tmp_path / 'tree'
    shutil.copytree(
        root / 'pelk_mm',
        tree / 'pelk_mm',
        ignore=shutil.ignore_patterns('__pycache__'),
    )
    for name in (
        'setup.py',
        'setup.cfg',
        'pyproject.toml',
        'README.md',
        'LICENSE',
    ):
        shutil.copy(root / name, tree)
    return tree


@pytest.fixture
def compiler(tmp_path) -> dict[str, str]:
    """One that takes no time, and gives what others compiled."""
    require('cpp')
    return made_up_compiler(tmp_path, cpp_build.find_library())


def build(
    tree: Path, what: str, *options: str, **environment: str
) -> tuple[Path, str]:
    """What pip does, without an environment of its own; and what it shows."""
    call = f'from setuptools.build_meta import *; {what}(*sys.argv[1:2]'
    if options:
        call += ', {"--build-option": sys.argv[2:]}'
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; {call})', 'dist', *options],
        cwd=tree,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    (made,) = (tree / 'dist').iterdir()
    return made, done.stdout


def names(wheel: Path) -> set[str]:
    return set(ZipFile(wheel).namelist())


def wheel_file(wheel: Path) -> str:
    (name,) = [name for name in names(wheel) if name.endswith('/WHEEL')]
    return ZipFile(wheel).read(name).decode()


def test_sdist_makes_a_wheel_for_any_platform(tree, tmp_path):
    sdist, _ = build(tree, 'build_sdist')
    shutil.unpack_archive(sdist, tmp_path)
    wheel, _ = build(tmp_path / sdist.name[:-7], 'build_wheel', CXX='/nowhere')
    assert wheel.name.endswith('-py3-none-any.whl')
    assert 'Root-Is-Purelib: true' in wheel_file(wheel)
    assert names(wheel) >= SOURCES
    assert not [name for name in names(wheel) if name.endswith('.so')]


def test_wheel_for_one_platform_runs_without_a_compiler(
    tree, tmp_path, compiler
):
    option = f'--plat-name={MANYLINUX}'
    wheel, _ = build(tree, 'build_wheel', option, **compiler)
    assert_library_runs(wheel, tmp_path)


@pytest.mark.slow
def test_wheel_compiled_for_real(tree, tmp_path):
    """Half a minute of one core."""
    option = f'--plat-name={MANYLINUX}'
    wheel, _ = build(tree, 'build_wheel', option)
    assert_library_runs(wheel, tmp_path)


def assert_library_runs(wheel: Path, folder: Path) -> None:
    assert wheel.name.endswith(f'-py3-none-{MANYLINUX}.whl')
    assert 'Root-Is-Purelib: false' in wheel_file(wheel)
    assert f'Tag: py3-none-{MANYLINUX}\n' in wheel_file(wheel)
    assert names(wheel) >= {LIBRARY, *SOURCES}
    installed = folder / 'installed'
    ZipFile(wheel).extractall(installed)
    # Without the rest, which takes long to import.
    code = (
        'import runpy, sys; sys.modules["mmcv"] = None; '
        'runpy.run_module("pelk_mm.ops.backends", run_name="__main__")'
    )
    (folder / 'empty').mkdir()
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env={
            'HOME': os.devnull,
            'PATH': str(folder / 'empty'),
            'PYTHONPATH': str(installed),
        },
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert "backend 'cpp' runs" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith(f': {installed / LIBRARY}\n')


@pytest.mark.parametrize('there_is_a_compiler', [True, False])
def test_editable(tree, tmp_path, compiler, there_is_a_compiler):
    """Compiled ahead where that can be done, otherwise one line says why."""
    environment = {**compiler, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    if not there_is_a_compiler:
        environment['CXX'] = '/nowhere/c++'
    wheel, said = build(tree, 'build_editable', **environment)
    assert wheel.name.endswith('-py3-none-any.whl')
    libraries = list(tmp_path.glob(f'cache/pelk_mm/*/{cpp_build.NAME}'))
    if there_is_a_compiler:
        assert f'The C++ kernels: {libraries[0]}\n' in said
    else:
        assert not libraries
        assert 'No C++ kernels, others will be used: the environment ' in said
