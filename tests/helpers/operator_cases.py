"""Inputs, the truth, and how far from it a backend may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d

#: Largest error of any region over the largest value of the truth, of the
#: output and of the gradients. Half an ulp where the result is rounded.
TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (2**-8 * 1.01, 2**-8 * 1.01),
    torch.float16: (2**-11 * 1.05, 2**-11 * 1.05),
}

#: The same of a whole block in float32, alone and under autocast: several
#: layers, each of which rounds what the last one gave it.
BLOCK_TOLERANCE = {
    torch.float32: (1e-6, 2e-6),
    torch.bfloat16: (2**-7, 2**-6),
    torch.float16: (2**-10, 2**-9),
}

#: Every grid that the paper prints, by a name that says which.
PAPER_GRIDS = {
    '5': SharingGrid(5, 0),
    '13': SharingGrid(13),
    '31': SharingGrid(31),
    '33': SharingGrid(33),
    '47': SharingGrid(47),
    '49': SharingGrid(49),
    '51': SharingGrid(51),
    '51 r0': SharingGrid(51, 0),
    '51 r1': SharingGrid(51, 1),
    '51 r3': SharingGrid(51, 3),
    '67': SharingGrid(67, 3),
    '69': SharingGrid(69, 3),
    '87': SharingGrid(87, 3),
    '89': SharingGrid(89, 3),
    '101': SharingGrid(101, 3),
    '151': SharingGrid(151, 3),
}
EXPLICIT_GRIDS = {
    'ones': SharingGrid.from_sizes([1] * 31),
    'twos': SharingGrid.from_sizes([2] * 5 + [1] + [2] * 5),
    'fixed': SharingGrid.from_sizes([4, 4, 4, 2, 1, 1, 1, 1, 1, 2, 4, 4, 4]),
    'reversed': SharingGrid.from_sizes([1, 1, 2, 4, 8, 1, 8, 4, 2, 1, 1]),
    'odd sizes': SharingGrid.from_sizes([3, 7, 1, 6, 5, 6, 1, 7, 3]),
    'one cell': SharingGrid.from_sizes([9]),
    'one pixel': SharingGrid.from_sizes([1]),
    'pairs': SharingGrid.from_sizes([3, 1, 1, 3, 1, 3, 1, 1, 3]),
    'far': SharingGrid.from_sizes([1000, 1, 1000]),
}
#: One of every kind.
GRIDS = {
    '5': SharingGrid(5, center_radius=0),
    '13': SharingGrid(13),
    '31': SharingGrid(31),
    '51': SharingGrid(51),
    '101': SharingGrid(101, center_radius=3),
    'explicit': SharingGrid.from_sizes([1, 1, 2, 4, 1, 4, 2, 1, 1]),
    'ones': SharingGrid.from_sizes([1] * 7),
    'one cell': SharingGrid.from_sizes([5]),
    'far': SharingGrid.from_sizes([25, 1, 25]),
    'large cells': SharingGrid.from_sizes([64, 1, 64]),
}
LAYOUTS = ('contiguous', 'channels_last', 'slice', 'strided')
BACKENDS = ('dense', 'fft', 'cpp')


def require(backend: str) -> None:
    """Skip, saying why, where a backend does not run."""
    reason = available_backends()[backend]
    if reason is not None:
        pytest.skip(reason)


def make_map(shape, dtype=torch.float32, layout='contiguous') -> Tensor:
    """Normal numbers in a layout; what lies between them is NaN."""
    batch, channels, height, width = shape
    values = torch.randn(shape, dtype=torch.float64).to(dtype)
    if layout == 'contiguous':
        return values
    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last)
    if layout == 'slice':
        whole = torch.full(
            (batch, height, width, channels + 5), torch.nan, dtype=dtype
        ).permute(0, 3, 1, 2)
        whole[:, :channels] = values
        return whole[:, :channels]
    assert layout == 'strided'
    whole = torch.full(
        (batch, channels, 2 * width, height), torch.nan, dtype=dtype
    ).transpose(2, 3)[..., ::2]
    whole.copy_(values)
    return whole


def truth(input, weight, bias, grid: SharingGrid) -> Tensor:
    """Eq. 1 in float64: every position of the kernel, one after the other.

    Knows the grid's sizes alone; nothing of the code under test.
    """
    cell_of = [
        cell for cell, size in enumerate(grid.sizes) for _ in range(size)
    ]
    radius = len(cell_of) // 2
    height, width = input.shape[-2:]
    rows = range(
        max(0, radius - height + 1), min(len(cell_of), radius + height)
    )
    columns = range(
        max(0, radius - width + 1), min(len(cell_of), radius + width)
    )
    padded = F.pad(
        input,
        (
            radius - columns[0],
            columns[-1] - radius,
            radius - rows[0],
            rows[-1] - radius,
        ),
    )
    patches = padded.unfold(2, height, 1).unfold(3, width, 1)
    taps = weight[:, 0][:, [cell_of[i] for i in rows]][
        :, :, [cell_of[j] for j in columns]
    ]
    output = torch.einsum('ncijhw,cij->nchw', patches, taps)
    return output if bias is None else output + bias[:, None, None]


def run(input, weight, bias, grad_output, convolve) -> tuple[Tensor, ...]:
    """Output, and gradients to input, weight and bias."""
    leaves = [
        tensor.detach().requires_grad_() for tensor in (input, weight, bias)
    ]
    output = convolve(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def map_regions(height: int, width: int) -> dict[str, Tensor]:
    """Centre, every ring, border rows and columns, and corners."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    inset = torch.minimum(
        torch.minimum(y, height - 1 - y), torch.minimum(x, width - 1 - x)
    )
    regions = {f'ring {i}': inset == i for i in range(int(inset.max()) + 1)}
    for row_name, row in (('top', 0), ('bottom', height - 1)):
        regions[row_name] = (y == row).expand(height, width)
        for name, column in (('left', 0), ('right', width - 1)):
            regions[f'{row_name} {name}'] = (y == row) & (x == column)
            regions[name] = (x == column).expand(height, width)
    return regions


def assert_close(
    actual: Tensor, expected: Tensor, tolerance: float, what: str
) -> None:
    """Compare in every region of a map, or in every cell of a weight."""
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    error = (actual.double() - expected).abs() / scale
    if error.ndim < 4:
        regions = {'all': torch.ones(error.shape, dtype=torch.bool)}
    else:
        regions = map_regions(*error.shape[-2:])
    for name, region in regions.items():
        worst = error[..., region].max().item()
        # `not <=`: a NaN fails.
        assert not (worst > tolerance or worst != worst), (
            f'{what}, {name}: {worst:.2e} > {tolerance:.2e}'
        )


def check(
    backend, shape, grid, dtype=torch.float32, layout='contiguous'
) -> None:
    """Output and every gradient of a backend against float64 truth."""
    cells = grid.num_cells
    input = make_map(shape, dtype, layout)
    grad_output = make_map(shape, dtype, layout)
    weight = torch.randn(shape[1], 1, cells, cells).to(dtype)
    bias = torch.randn(shape[1]).to(dtype)
    actual = run(
        input,
        weight,
        bias,
        grad_output,
        lambda *leaves: peripheral_conv2d(
            *leaves[:2], grid, leaves[2], backend=backend
        ),
    )
    expected = run(
        input.double(),
        weight.double(),
        bias.double(),
        grad_output.double(),
        lambda *leaves: truth(*leaves, grid),
    )
    names = 'output', 'input grad', 'weight grad', 'bias grad'
    for index, name in enumerate(names):
        assert actual[index].dtype == dtype
        # torch sums the bias gradient; it is not ours to judge.
        if name != 'bias grad':
            assert_close(
                actual[index],
                expected[index],
                TOLERANCE[dtype][index > 0],
                name,
            )
