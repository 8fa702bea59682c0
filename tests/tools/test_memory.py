"""What tools/benchmarks/memory.py counts, against what is known."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

MIB = 2**20


@pytest.fixture
def memory(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'tools/benchmarks'))
    import memory

    return memory


def test_peak_counts_what_lives_at_once(memory):
    def call():
        a = torch.ones(MIB, dtype=torch.uint8)
        b = a + 1  # both
        del a
        c = torch.ones(3 * MIB, dtype=torch.uint8)  # and b: the peak
        del b, c
        torch.ones(2 * MIB, dtype=torch.uint8)

    assert memory.bench.peak_memory(call, 'cpu') == pytest.approx(
        4 * MIB, abs=4096
    )
    assert memory.bench.peak_memory(call, 'cpu') == memory.bench.peak_memory(
        call, 'cpu'
    )


def test_storage_that_is_shared_counts_once(memory):
    x = torch.ones(8, 8)
    assert memory.storage_bytes([x, x[2:], x.t(), torch.ones(2)]) == 4 * 66


def test_kept_is_what_autograd_saves(memory):
    """Of two layers and a GELU: what goes in, but not images or weights."""
    layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    x = torch.randn(10, 16)
    kept = memory.kept_for_backward(layers, x, False)
    assert kept == 2 * 10 * 32 * 4  # into the GELU and out of it
    assert memory.kept_for_backward(nn.Sequential(layers), x, False) == kept


def test_an_image_takes_what_a_batch_takes_more(memory):
    once = dict(kept=70, peak=1000, weights=9)
    twice = dict(kept=110, peak=1060, weights=9)
    assert memory.per_image(once, twice, 4) == dict(kept=10, peak=15)


def test_writes_and_judges(memory, tmp_path, monkeypatch):
    """One run of the tool on made-up measurements."""

    def fake(name, size, batch, args):
        image = {'pelk_t': 6, 'same_width_t': 5}.get(name, 2) * MIB
        return {
            'weights': MIB,
            'gradients': MIB,
            'optimizer': 2 * MIB,
            'kept': image * batch,
            'peak': 4 * MIB + image * batch,
        }

    monkeypatch.setattr(memory, 'in_a_process', fake)
    file = tmp_path / 'memory.json'
    monkeypatch.setattr(
        'sys.argv', ['memory.py', '--sizes', '64', '--json', str(file)]
    )
    memory.main()
    content = json.loads(file.read_text())
    run = content['runs']['64 x 64']['networks']['pelk_t']
    assert run['per image'] == {'kept': 6 * MIB, 'peak': 6 * MIB}
    assert [(row['value'], row['verdict']) for row in content['targets']] == [
        (1.2, 'falls short'),
        (pytest.approx(1 / 3), 'pass'),
    ]


def test_measures_a_network(memory, monkeypatch):
    """A network of known sizes, as the process of a measurement does."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, stride=4, bias=False)
            self.with_cp = False

        def forward(self, x):
            return (F.gelu(self.conv(x)),)

    monkeypatch.setitem(memory.NETWORKS, 'net', Net)
    once, twice = (
        memory.measure('net', 64, batch, False, 'cpu') for batch in (2, 4)
    )
    weights = 8 * 3 * 16 * 4
    assert once['weights'] == once['gradients'] == weights
    assert once['optimizer'] == 2 * weights + 4  # and the count of steps
    image = memory.per_image(once, twice, 2)
    assert image['kept'] == 8 * 16 * 16 * 4
    assert once['peak'] > 4 * weights + 2 * 8 * 16 * 16 * 4
