"""What all backends share: they are built once, or say why not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pelk_mm.ops.backends import BACKENDS, BackendError
from pelk_mm.ops.backends import cpp as cpp_backend
from pelk_mm.ops.backends.dense import DenseBackend
from pelk_mm.ops.choice import select_backend

WHERE = torch.device('cpu'), torch.float32


class Counted(DenseBackend):
    name = 'counted'

    def __init__(self, error=None):
        super().__init__()
        self.builds, self.error = 0, error

    def build(self):
        self.builds += 1
        if self.error is not None:
            raise self.error


def prepare(backend):
    try:
        backend.prepare()
    except BackendError as error:
        return error


@pytest.mark.parametrize('error', [None, OSError('no luck\nmore')])
def test_built_once_whatever_the_threads(error):
    backend = Counted(error)
    assert backend.why_not(*WHERE) is None
    assert backend.builds == 0
    with ThreadPoolExecutor(8) as pool:
        raised = list(pool.map(prepare, [backend] * 32))
    assert backend.builds == 1
    if error is None:
        assert raised == [None] * 32
        assert backend.why_not(*WHERE) is None
    else:
        assert {one.__cause__ for one in raised} == {error}
        reason = "backend 'counted' could not be built: OSError: no luck"
        assert {str(one) for one in raised} == {reason}
        assert backend.why_not(*WHERE) == reason


def test_cause_of_cpp(monkeypatch):
    """What Triton's failures are caused by is tested with the backend."""
    error = RuntimeError('Error building\nc++: fatal error: no input\nmore')

    def fail():
        raise error

    monkeypatch.setattr(cpp_backend, 'find_library', fail)
    backend = cpp_backend.CppBackend()
    monkeypatch.setitem(BACKENDS, 'cpp', backend)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='fatal error') as raised:
            select_backend('cpp', *WHERE, 13)
        assert raised.value.__cause__ is error
    assert 'fatal error: no input' in backend.why_not(*WHERE)
