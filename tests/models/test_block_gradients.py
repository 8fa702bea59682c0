"""A whole block of PeLK-T: outputs and every gradient against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.models.backbones.pelk import PeLKStage
from pelk_mm.ops import SharingGrid
from tests.helpers.operator_cases import BLOCK_TOLERANCE, assert_close, require

CHANNELS, CONVOLVED, KERNEL = 124, 46, 51
#: Smaller than the kernel in both directions, and not square.
SHAPE = (2, CHANNELS, 20, 28)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise, K^2 multiply-adds an output, zero padding.

    Every row of the kernel as a banded matrix, because torch's own gradient
    of a large depthwise kernel takes a CPU seconds.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        kernel (Tensor): ``(C, K, K)``.
    """
    size, (height, width) = kernel.shape[-1], x.shape[2:]
    radius = size // 2
    rows = F.pad(x, (0, 0, radius, radius)).unfold(2, height, 1)
    source, target = torch.arange(width)[:, None], torch.arange(width)
    # Zeros where a column is out of the kernel's reach.
    bands = F.pad(kernel, (width, width))[
        ..., source - target + radius + width
    ]
    return torch.einsum('ncixh,cixz->nchz', rows, bands)


def test_the_convolution_is_torchs():
    x, kernel = torch.randn(2, 3, 5, 8).double(), torch.randn(3, 7, 7).double()
    torch.testing.assert_close(
        convolve(x, kernel), F.conv2d(x, kernel[:, None], padding=3, groups=3)
    )


def block(
    x: Tensor,
    weights: dict[str, Tensor],
    sizes: tuple[int, ...],
    training: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3 to 6 of the paper and ConvNeXt's MLP, from named weights.

    Returns:
        tuple: The output, and the running statistics behind this step.
    """
    of = {
        name.removeprefix('blocks.0.'): value
        for name, value in weights.items()
    }
    cell = [index for index, size in enumerate(sizes) for _ in range(size)]
    kernel = of['conv.large.weight'][:, 0][:, cell][:, :, cell]
    head, tail = x[:, :CONVOLVED], x[:, CONVOLVED:]
    statistics = {}

    def batch_norm(y: Tensor, name: str) -> Tensor:
        running = of[f'{name}.running_mean'], of[f'{name}.running_var']
        if training:
            used = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
            seen = used[0], y.var((0, 2, 3))
            for what, old, new in zip(
                ('mean', 'var'), running, seen, strict=True
            ):
                statistics[f'blocks.0.{name}.running_{what}'] = (
                    0.9 * old + 0.1 * new
                ).detach()
        else:
            used = running
        mean, var, weight, bias = (
            value[:, None, None]
            for value in (*used, of[f'{name}.weight'], of[f'{name}.bias'])
        )
        return (y - mean) / (var + 1e-5).sqrt() * weight + bias

    y = convolve(head, kernel)
    if 'conv.large.bias' in of:
        y = y + of['conv.large.bias'][:, None, None]
    else:
        y = batch_norm(y, 'conv.large_norm') + batch_norm(
            convolve(head, of['conv.small.weight'][:, 0]), 'conv.small_norm'
        )
    if 'pos_embed' in of:
        y = y + (kernel * of['pos_embed']).sum((1, 2))[:, None, None]
    y = torch.cat((y, tail), 1).permute(0, 2, 3, 1)
    y = (y - y.mean(3, keepdim=True)) / (
        y.var(3, keepdim=True, unbiased=False) + 1e-6
    ).sqrt()
    y = y * of['norm.weight'] + of['norm.bias']
    y = y @ of['pointwise_conv1.weight'].T + of['pointwise_conv1.bias']
    y = y * (1 + torch.erf(y / 2**0.5)) / 2
    y = y @ of['pointwise_conv2.weight'].T + of['pointwise_conv2.bias']
    return x + (y * of['gamma']).permute(0, 3, 1, 2), statistics


@pytest.fixture(params=['training', 'eval', 'merged'])
def case(request, randomise):
    """A stage of one block, its input, and the truth about it."""
    stage = PeLKStage(
        CHANNELS,
        SharingGrid(KERNEL),
        [0.0],
        layer_scale_init_value=1.0,
        backend='cpp',
    )
    for part in stage.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
    randomise(stage)
    training = request.param == 'training'
    stage.train(training)
    if request.param == 'merged':
        stage.merge()
    x = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    cotangent = torch.randn(SHAPE)

    leaves = {
        name: value.detach().double().requires_grad_()
        for name, value in stage.named_parameters()
    }
    x64 = x.double().requires_grad_()
    buffers = {name: value.double() for name, value in stage.named_buffers()}
    output, statistics = block(
        x64, leaves | buffers, stage.grid.sizes, training
    )
    gradients = torch.autograd.grad(
        (output * cotangent).sum(), (x64, *leaves.values())
    )
    truth = dict(zip(('input', *leaves), gradients, strict=True))
    truth['input'] = truth['input'] - cotangent
    truth['output'] = (output - x64).detach()
    truth |= statistics
    return stage, x, cotangent, truth


@pytest.mark.parametrize('dtype', BLOCK_TOLERANCE, ids=str)
def test_equals_the_written_out_block(case, dtype):
    require('cpp')
    stage, x, cotangent, truth = case
    x.requires_grad_()
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        output = stage(x)
    (output * cotangent).sum().backward()
    # The shortcut is exact, and would hide errors of what is added to it.
    found = {
        'output': output.detach() - x.detach(),
        'input': x.grad - cotangent,
    }
    found |= {name: value.grad for name, value in stage.named_parameters()}
    found |= {
        name: value
        for name, value in stage.named_buffers()
        if 'running' in name and stage.training
    }
    assert found.keys() == truth.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        expected = truth[name]
        assert expected.abs().max() > 0.1, f'{name} would hide anything'
        output_tolerance, tolerance = BLOCK_TOLERANCE[dtype]
        assert_close(
            value,
            expected,
            output_tolerance if name == 'output' else tolerance,
            name,
        )
