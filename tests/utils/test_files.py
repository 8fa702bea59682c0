import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.fileio import get_file_backend

from pelk_mm.utils.files import ATOMIC_BACKEND, atomic_path, remove_leftovers


def test_appears_whole_under_its_own_suffix(tmp_path):
    target = tmp_path / 'new' / 'figure.png'
    with atomic_path(target) as path:
        assert path.suffix == '.png'
        assert path.parent == target.parent
        path.write_text('half')
        assert not target.exists()
    assert target.read_text() == 'half'
    assert os.listdir(target.parent) == ['figure.png']


@pytest.mark.parametrize(
    'error', [OSError(28, 'No space left on device'), KeyboardInterrupt()]
)
@pytest.mark.parametrize('step', ['body', 'fsync', 'replace'])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    target = tmp_path / 'model.pth'
    target.write_text('old')

    def fail(*_):
        raise error

    if step != 'body':
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)), atomic_path(str(target)) as path:
        path.write_text('new')
        if step == 'body':
            fail()
    assert target.read_text() == 'old'
    assert os.listdir(tmp_path) == ['model.pth']


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    target = tmp_path / 'model.pth'
    target.write_text('old')
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == 'old'


def test_mmengine_backend(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND))
    target = tmp_path / 'data.bin'
    backend.put(b'old', str(target))
    assert backend.get(str(target)) == b'old'

    def half(self, data):
        with open(self, 'wb') as file:
            file.write(data[:2])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', half)
    with pytest.raises(OSError, match='No space'):
        backend.put(b'newer', target)
    assert target.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['data.bin']


def test_an_error_names_the_file(tmp_path):
    """The system does not, where writing fails and not opening."""
    with (
        pytest.raises(OSError, match='model.pth') as caught,
        atomic_path(tmp_path / 'model.pth'),
    ):
        raise OSError(28, 'No space left on device')
    assert caught.value.filename == str(tmp_path / 'model.pth')


def test_what_killed_processes_leave_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    leave = [
        f'.iter_3.{os.getppid()}.pth',  # a process that runs
        f'.iter_3.{dead.pid}.txt',
        'iter_3.pth',
        f'iter_4.{dead.pid}.pth',
        '.hidden.pth',
        '.iter_3.x.pth',
    ]
    take = [f'.iter_3.{dead.pid}.pth', f'.best_acc_iter_3.{os.getpid()}.pth']
    for name in leave + take:
        (tmp_path / name).write_text('')
    removed = remove_leftovers(tmp_path, '.pth')
    assert sorted(path.name for path in removed) == sorted(take)
    assert sorted(os.listdir(tmp_path)) == sorted(leave)
    assert remove_leftovers(tmp_path / 'missing', '.pth') == []


def test_only_leftovers_of_one_name(tmp_path):
    mine = [f'..note.{os.getpid()}', f'.other.{os.getpid()}']
    for name in mine:
        (tmp_path / name).write_text('')
    assert remove_leftovers(tmp_path, '', stem='.note') == [tmp_path / mine[0]]
    assert os.listdir(tmp_path) == mine[1:]
