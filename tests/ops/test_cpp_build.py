"""How the library of the C++ kernels comes to be there, or why it is not."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.backends import BACKENDS, cpp_build, cpp_library
from pelk_mm.ops.backends.__main__ import main
from pelk_mm.ops.backends.cpp import CppBackend
from tests.helpers.compilers import made_up_compiler
from tests.helpers.operator_cases import check, require

#: Without torch, as setup.py does it.
FIND = (
    'import runpy, sys; print(runpy.run_path(sys.argv[1])["find_library"]())',
    cpp_build.__file__,
)


@pytest.fixture(scope='module')
def compiled() -> Path:
    require('cpp')
    return cpp_build.find_library()


@pytest.fixture
def cpp(tmp_path, monkeypatch) -> CppBackend:
    """The backend as in a new process, and with a cache that is empty."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    backend = CppBackend()
    monkeypatch.setitem(BACKENDS, 'cpp', backend)
    return backend


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What a compiler is called with that takes no time."""
    made_up = made_up_compiler(tmp_path, Path(cpp_build.__file__))
    for name, value in made_up.items():
        monkeypatch.setenv(name, value)
    return lambda: Path(made_up['CALLS']).read_text().splitlines()


def assert_another_runs(caplog, *reason: str) -> None:
    """One line logged, the reason told and the cause chained."""
    grid = SharingGrid(51)
    x, w = torch.randn(1, 3, 20, 20), torch.randn(3, 1, 13, 13)
    for _ in range(2):
        assert peripheral_conv2d(x, w, grid).shape == x.shape
    (logged,) = [record.getMessage() for record in caplog.records]
    assert logged.endswith('; another backend is used instead')
    with pytest.raises(RuntimeError, match='^backend ') as raised:
        peripheral_conv2d(x, w, grid, backend='cpp')
    assert raised.value.__cause__ is BACKENDS['cpp'].failure
    for text in (logged, available_backends()['cpp'], str(raised.value)):
        assert 'could not be built' in text
        for words in reason:
            assert words in text, text


# ------------------------------------------------------------- not compiled


@pytest.mark.parametrize(
    'compiler, reason',
    [
        ('/nowhere/c++ -O3', 'CXX names the compiler /nowhere/c++, which is'),
        ('false', 'false failed: exit status 1'),
        (f'"{sys.executable}" -x', 'failed: '),
        (None, 'there is no C++ compiler: install g++ or clang++'),
    ],
)
def test_no_compiler(cpp, caplog, monkeypatch, tmp_path, compiler, reason):
    if compiler is None:
        monkeypatch.delenv('CXX', raising=False)
        monkeypatch.setenv('PATH', str(tmp_path))
    else:
        monkeypatch.setenv('CXX', compiler)
    assert_another_runs(caplog, reason)
    assert not list(tmp_path.glob('cache/*/*/build-*'))


def test_cache_that_cannot_be_written(cpp, caplog, tmp_path):
    (tmp_path / 'cache').write_text('')  # not a folder: stops root too
    assert_another_runs(caplog, str(tmp_path / 'cache'))


def test_errors_of_the_compiler(cpp, capsys, monkeypatch, tmp_path):
    """The line that tells, then all of it."""
    compiler = tmp_path / 'c++'
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = -dM ] && exit\n'
        'echo "In file included from a.h:1:" >&2\n'
        'echo "b.h:2:3: error: expected a miracle" >&2; exit 1\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('CXX', str(compiler))
    main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("backend 'cpp' does not run, others will be used")
    assert first.endswith('failed: b.h:2:3: error: expected a miracle')
    assert f'{compiler} -std=c++17' in rest[0]
    assert rest[1] == 'In file included from a.h:1:'


# ---------------------------------------------------------- cannot be loaded


def cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def of_another_machine(library: Path) -> None:
    """Another e_machine in the ELF header."""
    content = bytearray(library.read_bytes())
    content[18] ^= 0x80
    library.write_bytes(content)


def no_library(library: Path) -> None:
    library.write_text('no library')


def of_others(library: Path) -> None:
    library.unlink()
    library.symlink_to(torch._C.__file__)


def folder(library: Path) -> None:
    library.unlink()
    library.mkdir()


def not_to_be_read(library: Path) -> None:
    library.chmod(0)
    if os.access(library, os.R_OK):
        pytest.skip('this user may read everything')


@pytest.mark.parametrize(
    'damage, reason',
    [
        (cut, 'was cut short'),
        (of_another_machine, 'may be for another machine'),
        (no_library, 'cannot be loaded'),
        (of_others, 'is no library of pelk_mm'),
        (folder, 'Is a directory'),
        (not_to_be_read, 'Permission denied'),
    ],
)
def test_bad_library(cpp, caplog, compiled, damage, reason):
    library = cpp_build.cache_root() / cpp_build._key() / cpp_build.NAME
    library.parent.mkdir(parents=True)
    shutil.copyfile(compiled, library)
    damage(library)
    assert_another_runs(caplog, str(library), reason)


def test_library_of_another_interface(cpp, caplog, compiled, monkeypatch):
    module = 'pelk_mm.ops.backends.cpp'
    monkeypatch.setattr(f'{module}.find_library', lambda: compiled)
    monkeypatch.setattr(cpp_library, 'ABI', 1000)
    assert_another_runs(caplog, 'interface is number 1, expected 1000')


# ------------------------------------------------------------------ compiled


@pytest.mark.parametrize(
    'macros, with_flags, without',
    [
        ('x86_64 linux', '-fPIC -mavx2 -mavx512f --version-script -s', ''),
        ('aarch64 linux', '-fPIC --version-script -s', '-mavx'),
        ('riscv linux', '-fPIC --version-script -s', '-mavx'),
        ('aarch64 APPLE', '-fPIC', '-mavx --version-script -s'),
        (
            'x86_64 WIN32',
            '-mavx2 -static-libgcc -static-libstdc++ -s',
            '-fPIC --version-script',
        ),
    ],
)
def test_flags(calls, tmp_path, monkeypatch, macros, with_flags, without):
    defined = [f'#define __{name}__ 1' for name in macros.split()]
    if 'WIN32' in macros:
        defined[-1] = '#define _WIN32 1'
    monkeypatch.setenv('MACROS', '\n'.join(defined))
    cpp_build.compile_library(tmp_path / 'library')
    given = ' '.join(calls()).replace(',', ' ').replace('=', ' ') + ' '
    for flag in with_flags.split():
        assert f' {flag} ' in given
    for flag in without.split():
        assert f' {flag} ' not in given
    (link,) = [call for call in calls() if '-shared' in call]
    assert link.startswith('-target some ')


def test_kept_and_not_compiled_again(cpp, calls, tmp_path):
    library = cpp_build.find_library()
    assert library.is_relative_to(tmp_path / 'cache' / 'pelk_mm')
    assert sorted(os.listdir(library.parent)) == [cpp_build.NAME, 'lock']
    before = calls()
    assert cpp_build.find_library() == library
    assert calls() == before


def test_packaged_library_comes_first(cpp, calls, tmp_path, monkeypatch):
    packaged = tmp_path / cpp_build.NAME
    packaged.write_text('')
    monkeypatch.setattr(cpp_build, '__file__', str(tmp_path / 'cpp_build.py'))
    assert cpp_build.find_library() == packaged


def test_two_processes_compile_once(cpp, calls, monkeypatch):
    monkeypatch.setenv('SECONDS_TO_LINK', '0.5')
    python = [sys.executable, '-c', *FIND]
    processes = [
        subprocess.Popen(python, text=True, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    found = {process.communicate(timeout=60)[0] for process in processes}
    assert found == {f'{cpp_build.find_library()}\n'}
    assert len([call for call in calls() if '-shared' in call]) == 1


def test_killed_while_compiling(cpp, calls, tmp_path, monkeypatch):
    """The system takes its lock back; what it left is cleared away."""
    monkeypatch.setenv('SECONDS_TO_LINK', '60')
    killed = subprocess.Popen(
        [sys.executable, '-c', *FIND], start_new_session=True
    )
    while not (tmp_path / 'calls').exists() or '-shared' not in calls()[-1]:
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (left,) = tmp_path.glob('cache/pelk_mm/*/build-*')
    monkeypatch.setenv('SECONDS_TO_LINK', '0')
    library = cpp_build.find_library()
    assert library.parent == left.parent and not left.exists()


def test_systems_without_such_locks(cpp, calls, monkeypatch):
    """What another process may be compiling stays."""
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    library = cpp_build.find_library()
    others = library.with_name('build-others')
    others.mkdir()
    library.unlink()
    assert cpp_build.find_library() == library and library.exists()
    assert others.exists()


def test_key_depends_on_sources_flags_and_compiler(monkeypatch, tmp_path):
    key = cpp_build._key()
    assert key == cpp_build._key()
    with monkeypatch.context() as patch:
        patch.setattr(cpp_build, '_FLAGS', ('-O0',))
        assert cpp_build._key() != key
    with monkeypatch.context() as patch:
        patch.setenv('CXX', 'another')
        assert cpp_build._key() != key
    (tmp_path / 'a.cpp').write_text('int a;')
    monkeypatch.setattr(cpp_build, 'SOURCES', tmp_path)
    assert cpp_build._key() != key


@pytest.mark.slow
@pytest.mark.parametrize('compiler', ['g++', 'clang++'])
def test_compilers(cpp, capsys, monkeypatch, compiler):
    """For real: half a minute each on one core."""
    if not shutil.which(compiler):
        pytest.skip(f'there is no {compiler}')
    monkeypatch.setenv('CXX', compiler)
    main()
    assert "backend 'cpp' runs with kernels for" in capsys.readouterr().out
    check('cpp', (2, 5, 9, 14), SharingGrid(31))
    assert cpp.library.path.is_relative_to(cpp_build.cache_root())
