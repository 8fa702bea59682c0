"""torch.onnx.export by itself: standard nodes that compute the same."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pelk_mm.models import PeLK
from pelk_mm.models.layers import PeripheralConv2d
from pelk_mm.ops import SharingGrid

onnx = pytest.importorskip('onnx', reason='needs requirements/deploy.txt')
pytest.importorskip('onnxscript', reason='needs requirements/deploy.txt')
onnxruntime = pytest.importorskip(
    'onnxruntime', reason='needs requirements/deploy.txt'
)
if not hasattr(torch.export.Dim, 'DYNAMIC'):
    pytest.skip('this torch exports otherwise', allow_module_level=True)

pytestmark = pytest.mark.filterwarnings('ignore')
#: The axes of a batch, for either exporter.
AXES = {0: 'batch', 2: 'height', 3: 'width'}
DYNAMIC = {
    True: dict(
        dynamic_shapes=(dict.fromkeys(AXES, torch.export.Dim.DYNAMIC),)
    ),
    False: dict(dynamic_axes=dict(x=AXES), input_names=['x']),
}


class Two(nn.Module):
    """One with a bias and one without; kernels larger than the map."""

    def __init__(self):
        super().__init__()
        self.first = PeripheralConv2d(3, SharingGrid(31, 1))
        self.second = PeripheralConv2d(3, SharingGrid(13), bias=False)
        nn.init.normal_(self.first.bias)

    def forward(self, x):
        return self.second(self.first(x).relu())


def nodes(path) -> dict[str, int]:
    """How many of each operator; all of them of ONNX."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    names = [node.op_type for node in model.graph.node]
    assert {node.domain for node in model.graph.node} == {''}
    return {name: names.count(name) for name in names}


def check(path, network, *batches) -> None:
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    for x in batches:
        got = session.run(None, {name: x.numpy()})
        expected = network(x)
        if not isinstance(expected, tuple):
            expected = (expected,)
        for y, z in zip(got, expected, strict=True):
            torch.testing.assert_close(
                torch.from_numpy(y), z, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize('dynamo', [True, False])
@torch.no_grad()
def test_operator(dynamo, tmp_path):
    """Any number of images of any size; kernels are written out once."""
    network, path = Two().eval(), str(tmp_path / 'two.onnx')
    x = torch.randn(2, 3, 9, 11)
    torch.onnx.export(network, (x,), path, dynamo=dynamo, **DYNAMIC[dynamo])
    counts = nodes(path)
    assert counts['Conv'] == 2 and 'Gather' not in counts
    check(path, network, x, torch.randn(1, 3, 40, 5))


@torch.no_grad()
def test_exported_program(tmp_path):
    """Of torch.export, which keeps the operator as it is."""
    network, path = Two().eval(), str(tmp_path / 'two.onnx')
    x = torch.randn(2, 3, 9, 11)
    program = torch.export.export(network, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count('pelk_mm.peripheral_conv2d.default') == 2
    torch.onnx.export(program, (), path, dynamo=True)
    assert nodes(path)['Conv'] == 2
    check(path, network, x)


@pytest.mark.parametrize(
    ('dynamo', 'merged'),
    [
        # The new exporter takes about 10 s before merging.
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
        (False, False),
        (False, True),
    ],
)
@torch.no_grad()
def test_backbone(dynamo, merged, tmp_path):
    arch = dict(
        depths=(1, 1, 1, 1),
        channels=(8, 12, 16, 24),
        kernel_sizes=(51, 13, 9, 5),
    )
    network, path = PeLK(arch, out_indices=(0, 3)), str(tmp_path / 'pelk.onnx')
    for gamma in (block.gamma for s in network.stages for block in s.blocks):
        gamma.fill_(1)
    network.eval()
    if merged:
        network.switch_to_deploy()
    x = torch.randn(1, 3, 64, 64)
    torch.onnx.export(network, (x,), path, dynamo=dynamo)
    # Four convolutions of stem and downsampling besides.
    assert nodes(path)['Conv'] == (8 if merged else 12)
    check(path, network, x)


def test_nothing_of_it_is_imported_before():
    code = (
        'import sys, pelk_mm.ops; '
        "print([name for name in sys.modules if name.startswith('onnx') "
        "or name.startswith('torch.onnx.')])"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.stdout.strip() == '[]', done.stderr
