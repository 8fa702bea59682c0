"""The operator among streams, graphs, devices and large tensors of a GPU.

That it is right there is in test_triton.py. What makes sense on a CPU is
tested there too.
"""

from __future__ import annotations

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from tests.helpers.devices import (
    DEVICES,
    captured,
    peak_memory,
    require_memory,
)
from tests.helpers.operator_cases import assert_close

GRID = SharingGrid(31)
SHAPE = 4, 24, 28, 28
FAR = SharingGrid(51)
#: Of the largest value; test_triton.py has each dtype's own.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-10}


def operands(
    device, shape=SHAPE, grid=GRID, dtype=torch.bfloat16, seed=0
) -> list[torch.Tensor]:
    """Input (channels-last), weight, bias and the output's gradient."""
    torch.manual_seed(seed)
    channels, cells = shape[1], grid.num_cells
    sizes = shape, (channels, 1, cells, cells), (channels,), shape
    tensors = [torch.randn(x, device=device, dtype=dtype) for x in sizes]
    for index in (0, 3):
        tensors[index] = tensors[index].to(memory_format=torch.channels_last)
    return tensors


def both(input, weight, bias, grad, grid=GRID, backend=None):
    """Output and gradients of input, weight and bias."""
    leaves = [x.detach().requires_grad_() for x in (input, weight, bias)]
    output = peripheral_conv2d(*leaves[:2], grid, leaves[2], backend=backend)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def assert_near_truth(got, tensors, grid=GRID):
    """Output and gradients of input and weight against float64."""
    truth = both(*(x.double() for x in tensors), grid=grid, backend='fft')
    for index, name in enumerate(('output', 'input grad', 'weight grad')):
        values = got[index].cpu(), truth[index].cpu()
        assert_close(*values, TOLERANCE[got[index].dtype], name)


@pytest.mark.gpu
def test_graph_is_replayed_on_other_numbers():
    static = operands('cuda')
    replay, results = captured(lambda: both(*static))
    for seed in (1, 2):
        others = operands('cuda', seed=seed)
        for place, values in zip(static, others, strict=True):
            place.copy_(values)
        replay()
        assert_same(results, both(*others))


@pytest.mark.gpu
def test_stream_that_is_not_the_default_one():
    tensors = operands('cuda')
    expected = both(*tensors)
    late = [torch.full_like(x, torch.nan) for x in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for place, values in zip(late, tensors, strict=True):
            place.copy_(values)
        # On any other stream this would begin before the numbers are there.
        got = both(*late)
    stream.synchronize()
    assert_same(got, expected)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    tensors = operands('cuda')
    both(*tensors)
    torch.cuda.set_sync_debug_mode('error')
    try:
        both(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'slice'])
def test_no_hidden_copy_of_large_maps(layout):
    """Scratch is by groups of channels, a copy would be the whole map."""
    require_memory(6)
    input, *rest, grad = operands('cuda', (256, 64, 128, 128), FAR)
    if layout == 'contiguous':
        input, grad = input.contiguous(), grad.contiguous()
    elif layout == 'slice':
        whole = torch.empty(
            256, 128, 128, 72, dtype=input.dtype, device='cuda'
        )
        input = whole.permute(0, 3, 1, 2)[:, :64].copy_(input)
        del whole
    weight, bias = rest
    leaves = input.requires_grad_(), weight.requires_grad_()
    scratch = 400 << 20
    assert input.nbytes > scratch

    def forward():
        return peripheral_conv2d(*leaves, FAR, bias)

    assert peak_memory(forward) < input.nbytes + scratch
    output = forward()
    last = layout != 'contiguous'
    format = torch.channels_last if last else torch.contiguous_format
    assert output.is_contiguous(memory_format=format)

    def backward():
        torch.autograd.grad(output, leaves, grad)

    assert peak_memory(backward) < input.nbytes + scratch


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('device', DEVICES)
def test_tensors_of_more_elements_than_an_int_counts(device, layout):
    """The first and the last images, as if they were alone."""
    images, size = 12, 24
    if device == 'cuda':
        require_memory(30)
        images, size = 2**31 // (16 * 128 * 128) + 8, 128
    dtype = torch.bfloat16
    ends = operands(device, (8, 16, size, size), FAR, dtype)
    input, weight, bias, grad = ends
    shape = images, *input.shape[1:]
    format = getattr(torch, layout.replace('contiguous', 'contiguous_format'))
    options = dict(dtype=dtype, device=device)
    large = torch.empty(shape, **options, memory_format=format)
    large.normal_()
    grads = torch.zeros_like(large)
    for values, places in ((input, large), (grad, grads)):
        places[:4], places[-4:] = values[:4], values[4:]
    # Zeros in between: the weight's gradient is that of the ends.
    output, *got = both(large, weight, bias, grads, FAR)
    assert output.is_contiguous(memory_format=format)
    parts = [torch.cat((x[:4], x[-4:])) for x in (output, got[0])]
    assert_near_truth((*parts, got[1]), ends, FAR)
    if device == 'cuda':
        assert large.numel() > 2**31


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='one CUDA device')
def test_device_that_is_not_the_current_one():
    tensors = operands('cuda:0')
    other = [x.to('cuda:1') for x in tensors]
    assert torch.cuda.current_device() == 0
    for got, expected in zip(both(*other), both(*tensors), strict=True):
        assert got.device == torch.device('cuda:1')
        assert torch.equal(got.cpu(), expected.cpu())
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('own', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('device', DEVICES)
def test_autocast(device, own, dtype):
    """Computed in autocast's dtype, gradients in the parameters' own."""
    tensors = operands(device, dtype=torch.float32)
    leaves = [x.to(own).requires_grad_() for x in tensors[:3]]
    with torch.autocast(device, dtype):
        output = peripheral_conv2d(*leaves[:2], GRID, leaves[2])
    assert output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    grad = tensors[3].to(dtype)
    grads = torch.autograd.grad(output, leaves, grad)
    assert {x.dtype for x in grads} == {own}
    seen = [x.detach().to(dtype) for x in leaves]
    expected = both(*seen, grad)
    assert torch.equal(output, expected[0])
    for got, value in zip(grads, expected[1:], strict=True):
        assert torch.equal(got, value.to(own))
    assert_near_truth(expected, (*seen, grad))


@pytest.mark.gpu
def test_compiled_into_a_cuda_graph():
    tensors = operands('cuda', dtype=torch.float32)
    grad = tensors.pop()
    leaves = [x.requires_grad_() for x in tensors]

    def layer(input, weight, bias):
        return peripheral_conv2d(2 * input, weight, GRID, bias).relu()

    compiled = torch.compile(layer, fullgraph=True, mode='reduce-overhead')
    for _ in range(3):
        expected = layer(*leaves)
        output = compiled(*leaves)
        torch.testing.assert_close(output, expected)
        assert output.stride() == expected.stride()
        for got, value in zip(
            torch.autograd.grad(output, leaves, grad),
            torch.autograd.grad(expected, leaves, grad),
            strict=True,
        ):
            # The bias's is torch's own sum, in another order once compiled.
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-3)
