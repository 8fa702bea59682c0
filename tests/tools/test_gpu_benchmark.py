"""What the benchmarks of the operator and of networks say about a GPU."""

import pytest
import torch

from tests.helpers.devices import DEVICES


@pytest.fixture
def tool(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'tools/benchmarks'))
    import peripheral_conv

    return peripheral_conv


def test_regions_of_an_error(tool):
    error = torch.zeros(2, 3, 5, 7)
    error[1, 2, 0, 6] = 3
    error[0, 1, 4, 2] = 2
    error[0, 0, 1, 1] = 1
    assert tool.by_region(error) == dict(corners=3, edges=3, inside=1)
    error[1, 2, 0, 6] = 0
    assert tool.by_region(error) == dict(corners=0, edges=2, inside=1)


def test_targets_of_a_gpu(tool):
    times = {
        'triton': 2.0,
        'dense channels-last': 30.0,
        'dense contiguous': 20.0,
        '7x7 all channels': 1.0,
        '7x7 all channels contiguous': 4.0,
    }
    case = {
        'environment': dict(gpu='some', dtype='bfloat16'),
        'errors': {'output': 0.006, 'input grad': 0.009, 'weight grad': 0.0},
        tool.BOTH: {name: dict(median_ms=ms) for name, ms in times.items()},
    }
    rows = tool.targets({str(tool.CASES['stage1_64']): case})
    assert [(row['value'], row['limit'], row['verdict']) for row in rows] == [
        (10, 5, 'pass'),
        (2, 1.5, 'falls short'),
        (0.006, 2**-7, 'pass'),
        (0.009, 2**-7, 'falls short'),
        (0, 2**-7, 'pass'),
    ]


def test_targets_of_training_steps(tool):
    import throughput

    key = '224 x 224, batch 64, training step, AdamW, bfloat16'
    ms = {
        'pelk_t': 50.0,
        'same_width_t': 45.0,
        'pelk_101_t': 55.0,
        'pelk_t, CUDA graph': 60.0,
        'same_width_t, CUDA graph': 45.0,
    }
    times = {name: dict(median_ms=value) for name, value in ms.items()}
    rows = throughput.targets({key: dict(networks=times)})
    assert [(row['value'], row['verdict']) for row in rows] == [
        (45 / 50, 'pass'),
        (45 / 60, 'falls short'),
        (50 / 55, 'falls short'),
    ]
    assert rows[1]['target'].endswith(f'{key}, CUDA graph')


@pytest.mark.parametrize('device', DEVICES)
def test_errors_are_small_and_seen(tool, device, monkeypatch):
    case = tool.Case(1, 3, 8, 9, 13)
    with torch.device(device):
        operands = tool.Operands(case)
    backend = tool.chosen(operands.slice, case.kernel_size)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        worst = tool.errors(case, operands, backend, dtype)
        assert 0 < max(max(of.values()) for of in worst.values()) < limit
    convolve = tool.peripheral_conv2d

    def wrong(input, weight, grid, backend):
        output = convolve(input, weight, grid, backend=backend)
        return output * 1.01 if backend != 'fft' else output

    monkeypatch.setattr(tool, 'peripheral_conv2d', wrong)
    worst = tool.errors(case, operands, backend, torch.float32)
    assert worst['output']['inside'] == pytest.approx(0.01, rel=0.5)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.fixture
    def products(self):
        def product(x):
            return lambda: x @ x

        return [product(torch.randn(1024, 1024).cuda()) for _ in range(8)]

    def test_a_graph_and_the_host(self, tool, products):
        entry = tool.gpu.measure(products, 5, 0.5)
        assert entry['timed'] == 'graph'
        assert 1 < entry['inputs'] <= 8
        assert 0 < entry['best_ms'] <= entry['median_ms'] < 50
        assert 0 < entry['host_ms'] < 50

    def test_what_no_graph_can_hold_is_called(self, tool, products):
        one = torch.ones(1)
        copies = [lambda call=call: call() + one.cuda() for call in products]
        assert tool.gpu.measure(copies, 5, 0.5)['timed'] == 'calls'
        assert tool.gpu.measure(products, 5, 0.5)['timed'] == 'graph'

    def test_a_step_and_its_host(self, tool, products):
        entry = tool.gpu.measure_step(products[0], 3, 1.0)
        assert 0 < entry['best_ms'] <= entry['median_ms'] < 50
        assert 0 < entry['host_ms'] < 50

    def test_kernels_are_counted(self, tool, products):
        rows = tool.gpu.kernels(lambda: [call() for call in products], 3)
        assert sum(count for _, count in rows.values()) >= 8

    def test_inputs_are_more_than_the_cache_holds(self, tool):
        size = torch.cuda.get_device_properties().L2_cache_size
        assert tool.gpu.num_inputs(size // 3) == 4
