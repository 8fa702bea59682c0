"""What is in the distributions, and that the library of a wheel runs."""

from __future__ import annotations

import os
import re
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
SHIPPED = ('configs', 'docs', 'pelk_mm', 'requirements', 'tests', 'tools')


@pytest.fixture(scope='module')
def sources(root, tmp_path_factory) -> Path:
    """The repository without what lies around in it."""
    sources = tmp_path_factory.mktemp('sources')
    for path in root.iterdir():
        if path.name in SHIPPED:
            shutil.copytree(
                path,
                sources / path.name,
                symlinks=True,
                ignore=shutil.ignore_patterns('__pycache__'),
            )
        elif path.is_file():
            shutil.copy(path, sources)
    return sources


@pytest.fixture(scope='module')
def sdist(sources) -> Path:
    return build(sources, 'build_sdist')[0]


@pytest.fixture
def tree(sdist, tmp_path) -> Path:
    """What is in the sdist, to build in."""
    shutil.unpack_archive(sdist, tmp_path)
    return tmp_path / sdist.name.removesuffix('.tar.gz')


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


def test_sdist_makes_a_wheel_for_any_platform(sources, tree, tmp_path):
    """Which holds configs and tools, too; the sdist has the rest."""
    wheel, _ = build(tree, 'build_wheel', CXX='/nowhere')
    assert wheel.name.endswith('-py3-none-any.whl')
    assert 'Root-Is-Purelib: true' in wheel_file(wheel)
    held = names(wheel)
    assert held >= SOURCES
    assert {'pelk_mm/py.typed', 'pelk_mm/.mim/model-index.yml'} <= held
    assert any(name.endswith('/licenses/LICENSE') for name in held)
    assert not [name for name in held if name.endswith('.so')]
    for folder, packed in (('configs', 'configs/pelk'), ('tools', 'tools')):
        for path in files(sources / folder):
            assert (tree / folder / path).is_file()
            if 'results' not in path.parts:
                assert f'pelk_mm/.mim/{packed}/{path}' in held
    for folder in ('docs', 'tests', 'requirements'):
        assert files(tree / folder) == files(sources / folder)
    assert (tree / 'Makefile').is_file()
    assert_configs_are_found(wheel, tmp_path)
    assert_description_stands_alone(wheel, (sources / 'README.md').read_text())


def assert_description_stands_alone(wheel: Path, readme: str) -> None:
    """On a package index there are no other files of the repository."""
    (name,) = [name for name in names(wheel) if name.endswith('/METADATA')]
    text = ZipFile(wheel).read(name).decode()
    assert not re.findall(r'\]\((?!http).*?\)', text)
    for code in re.findall(r'^```.*?^```', readme, re.M | re.S):
        assert code in text


def assert_configs_are_found(wheel: Path, folder: Path) -> None:
    """By a script that knows nothing of pelk_mm."""
    site = folder / 'site'
    ZipFile(wheel).extractall(site)
    for path in site.glob('*.data/purelib/*'):
        path.rename(site / path.name)
    (folder / 'own.py').write_text(
        "_base_ = 'pelk_mm::pelk/_base_/schedules/coco_3x.py'\n"
        'custom_imports = None\n'
    )
    code = (
        f'import site, sys; site.addsitedir({str(site)!r})\n'
        'from mmengine.config import Config\n'
        'assert Config.fromfile("own.py").default_scope == "mmdet"\n'
        'assert "pelk_mm" not in sys.modules\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def files(folder: Path) -> set[Path]:
    """Relative to the folder."""
    found = folder.rglob('*')
    return {path.relative_to(folder) for path in found if path.is_file()}


@pytest.mark.slow
def test_sdist_runs_its_own_tests(tree):
    """The libraries are imported anew."""
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '-q'),
            *('tests/test_cli.py', 'tests/test_docs.py', '-k', 'not notebook'),
        ],
        cwd=tree,
        env={**os.environ, 'PYTHONPATH': str(tree)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout


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
    (names_file,) = [n for n in names(wheel) if n.endswith('/top_level.txt')]
    # Where mim looks for .mim, from the folder of the metadata.
    first = ZipFile(wheel).read(names_file).decode().splitlines()[0]
    assert Path('/site-packages', first, '.mim').is_dir()
    assert any(n.endswith('/purelib/pelk_mm_names.pth') for n in names(wheel))
    libraries = list(tmp_path.glob(f'cache/pelk_mm/*/{cpp_build.NAME}'))
    if there_is_a_compiler:
        assert f'The C++ kernels: {libraries[0]}\n' in said
    else:
        assert not libraries
        assert 'No C++ kernels, others will be used: the environment ' in said
