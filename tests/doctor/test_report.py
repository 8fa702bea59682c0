"""What is printed, from facts that are made up."""

import json
import sys

import pytest

from pelk_mm.doctor import __main__ as command
from pelk_mm.doctor.probes import NEEDS
from pelk_mm.doctor.processes import Outcome
from pelk_mm.version import __version__

GPU = {'name': 'Some GPU', 'capability': [9, 0], 'memory_gib': 79.1}
FACTS = {
    'torch': {'cuda': '12.8', 'gpus': [GPU]},
    'mmcv_ops': {'cuda': '12.8'},
    'operator': {
        'backends': {
            'cpu': {'triton': 'it needs a GPU', 'cpp': None},
            'cuda': {'triton': None, 'cpp': 'it runs on CPU only'},
        },
        'library': {'path': '/some/libpelk_mm.so', 'instruction_set': 'avx9'},
    },
}


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Its command line, with the probes' outcomes and packages given."""

    def run(*args, outcomes=None, packages=None):
        found = {name: Outcome('works', FACTS.get(name, {})) for name in NEEDS}
        found.update(outcomes or {})
        monkeypatch.setattr(command, 'run_probes', lambda: found)
        there = packages or {'torch': '2.10.0'}
        monkeypatch.setattr(command, 'installed', lambda: there)
        monkeypatch.setattr(sys, 'argv', ['doctor', *args])
        return command.main(), capsys.readouterr()

    return run


def test_text(doctor):
    status, (out, _) = doctor()
    assert status == 0
    assert out.splitlines()[0].startswith(f'pelk_mm {__version__} in ')
    assert 'GPU: Some GPU, capability 9.0, 79.1 GiB' in out
    assert 'CUDA: torch 12.8, mmcv 12.8' in out
    assert '  torch                   2.10.0' in out
    assert 'operator backends on cuda\n  triton    runs\n' in out
    assert '  cpp       it runs on CPU only' in out
    assert 'C++ kernels: avx9, /some/libpelk_mm.so\n' in out
    assert out.endswith('no trouble found\n')


def test_no_library(doctor):
    backends = {'cpu': {'cpp': 'it was cut short'}}
    facts = {'backends': backends, 'library': None}
    status, (out, _) = doctor(outcomes={'operator': Outcome('works', facts)})
    assert status == 1
    assert 'C++ kernels: not loaded, see below\n' in out
    assert '  cpp       it was cut short\n' in out


def test_json(doctor):
    status, (out, err) = doctor(
        '--json',
        outcomes={'mmcv': Outcome('fails', message='ImportError: broken')},
    )
    found = json.loads(out)
    assert status == 1 and not found['ok']
    (finding,) = found['findings']
    assert finding['text'] == 'ImportError: broken'
    assert found['library'] == FACTS['operator']['library']
    assert 'up to some minutes' in err


def test_room(doctor):
    packages = {'onedl-mmcv': '2.3.6'}
    status, (_, err) = doctor('--has-room-for', 'openmmlab', packages=packages)
    assert status == 1 and 'onedl-mmcv' in err
    status, _ = doctor('--has-room-for', 'onedl', packages=packages)
    assert status == 0
    with pytest.raises(SystemExit):
        doctor('--has-room-for', 'neither')


def test_the_compiler_may_have_a_wrapper(monkeypatch, tmp_path):
    tool = tmp_path / 'compiler'
    tool.write_text('#!/bin/sh\necho "made up $1 $2"\necho more\n')
    tool.chmod(0o755)
    monkeypatch.setenv('CXX', f'"{tool}" g++')
    monkeypatch.setattr(command, 'run_probes', dict)
    assert command.survey().compiler == 'made up g++ --version'
    monkeypatch.setenv('CXX', str(tmp_path / 'absent'))
    assert command.survey().compiler is None
    tool.write_text('#!/bin/sh\nexit 1\n')
    monkeypatch.setenv('CXX', str(tool))
    assert command.survey().compiler is None


def test_the_compilers_that_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv('CXX', '')
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(command, 'run_probes', dict)
    assert command.survey().compiler is None
    tool = tmp_path / 'clang++'
    tool.write_text('#!/bin/sh\necho "made up $1"\n')
    tool.chmod(0o755)
    assert command.survey().compiler == 'made up --version'
