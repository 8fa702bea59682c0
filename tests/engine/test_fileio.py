import os
from pathlib import Path

import pytest
from mmengine.fileio import get_file_backend

from pelk_mm.engine.fileio import ATOMIC_BACKEND, atomic_path


def test_appears_whole_under_its_own_suffix(tmp_path):
    target = tmp_path / 'new' / 'figure.png'
    with atomic_path(target) as path:
        assert path.suffix == '.png'
        assert path.parent == target.parent
        path.write_text('half')
        assert not target.exists()
    assert target.read_text() == 'half'
    assert os.listdir(target.parent) == ['figure.png']


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'),
                                   KeyboardInterrupt()])
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
