"""Each probe here, where all of them have to succeed."""

import json

import pytest
import torch

from pelk_mm.compat import has_ops
from pelk_mm.doctor import probes
from pelk_mm.ops.backends import BACKENDS
from tests.helpers.operator_cases import require


@pytest.mark.parametrize('name', probes.PROBES)
def test_probe(name):
    if name == 'mmcv_ops' and not has_ops():
        pytest.skip('mmcv has no compiled operators')
    facts = probes.PROBES[name]()
    assert json.loads(json.dumps(facts)) == facts


def test_facts():
    assert probes.torch()['version'] == torch.__version__
    assert probes.torch()['cuda'] == torch.version.cuda
    assert len(probes.torch()['gpus']) == torch.cuda.device_count()


def test_the_library_that_is_loaded():
    require('cpp')
    library = BACKENDS['cpp'].library
    assert probes.operator()['library'] == {
        'path': str(library.path),
        'instruction_set': library.instruction_set,
    }


def test_a_wrong_result_is_found(monkeypatch):
    require('cpp')
    import pelk_mm.ops as ops

    right = ops.peripheral_conv2d

    def wrong(input, weight, grid, backend):
        if backend == 'fft':
            raise RuntimeError('no plan')
        output = right(input, weight, grid, backend=backend)
        nan = backend == 'cpp'
        return output * torch.nan if nan else output

    monkeypatch.setattr(ops, 'peripheral_conv2d', wrong)
    found = probes.operator()['backends']['cpu']
    assert found['dense'] is None
    assert 'its result is off by nan' in found['cpp']
    assert found['fft'] == 'RuntimeError: no plan'


def test_results_file(tmp_path, monkeypatch):
    def leaves():
        raise SystemExit(3)

    three = dict(one=lambda: {'a': 1}, two=leaves, three=lambda: {})
    monkeypatch.setattr(probes, 'PROBES', three)
    probes._try_all(tmp_path / 'results', ['one', 'two', 'three'])
    lines = (tmp_path / 'results').read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        ['one', {'state': 'works', 'facts': {'a': 1}}],
        ['two', {'state': 'fails', 'message': 'SystemExit: 3'}],
    ]
