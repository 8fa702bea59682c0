"""torch.compile of a whole PeLK: one graph forward, one backward."""

import copy

import pytest
import torch
import torch._inductor.config
from functorch.compile import (
    make_boxed_func,
    min_cut_rematerialization_partition,
)
from torch._dynamo.backends.common import aot_autograd

from pelk_mm.models import PeLK

ARCH = dict(depths=(1, 1, 1, 1), channels=(8, 9, 8, 8), kernel_sizes=(9,) * 4)
FORWARD, BACKWARD = 'peripheral_conv2d', 'peripheral_conv2d_backward'


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Recorder:
    """A compiler that runs graphs as they are, and knows their operators."""

    def __init__(self):
        self.graphs = []
        options = dict(
            partition_fn=min_cut_rematerialization_partition,
            keep_inference_input_mutations=True,
        )
        self.compile = aot_autograd(fw_compiler=self._record, **options)

    def _record(self, module, _):
        targets = [str(node.target) for node in module.graph.nodes]
        own = [name.split('.')[1] for name in targets if 'pelk_mm' in name]
        self.graphs.append(own)
        return make_boxed_func(module.forward)


def build(**kwargs):
    torch.manual_seed(0)
    kwargs = dict(out_indices=(0,), layer_scale_init_value=1.0) | kwargs
    return PeLK(ARCH, gap_before_final_norm=False, **kwargs)


def step(model, x, autocast=False):
    """Outputs, gradients and statistics; what is drawn is drawn alike."""
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        maps = model(x)
    sum(y.float().pow(3).mean() for y in maps).backward()
    return [*maps, *(p.grad for p in model.parameters()), *model.buffers()]


def check(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=0.1)


@pytest.mark.parametrize(
    ('with_cp', 'autocast'),
    [(False, True), pytest.param(True, False, marks=pytest.mark.slow)],
)
def test_a_node_an_operator(with_cp, autocast):
    model = build(drop_path_rate=0.5, with_cp=with_cp, use_grn=True)
    twin, recorder = copy.deepcopy(model), Recorder()
    compiled = torch.compile(model, fullgraph=True, backend=recorder.compile)
    x = torch.randn(2, 3, 32, 32)
    expected, got = (step(run, x, autocast) for run in (twin, compiled))
    check(got, expected, 0.05 if autocast else 1e-4)
    # A large and a small kernel; checkpointed, they run once more.
    forward, backward = recorder.graphs
    assert forward == [FORWARD] * 2
    again = 2 if with_cp else 0
    assert sorted(backward) == [FORWARD] * again + [BACKWARD] * 2


@pytest.mark.slow  # three compilations
def test_sizes_of_all_kinds_take_one_graph():
    model, recorder = build(), Recorder()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=recorder.compile)
    counts = []
    for size in ((32, 32), (64, 32), (32, 96), (96, 64), (160, 96)):
        x = torch.randn(2, 3, *size)
        check(step(compiled, x), step(twin, x), 1e-4)
        counts.append(len(recorder.graphs))
    # The first sizes are taken for constants, height and width by themselves.
    assert counts[2] <= 6 and counts[2:] == [counts[2]] * 3


@pytest.mark.slow  # a C++ compiler runs
@torch._inductor.config.patch(fallback_random=True)  # drawn as without it
def test_inductor():
    model = build(drop_path_rate=0.5)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    expected, got = (step(run, x) for run in (twin, compiled))
    check(got, expected, 1e-3)
