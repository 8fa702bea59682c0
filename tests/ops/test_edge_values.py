"""NaN, infinities, denormals and lost digits, as docs/numbers.md says.

All other values are small integers times a power of two. Every dtype that is
summed in holds their sums, in whatever order: results are equal, not close.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.backends import BACKENDS
from tests.helpers.operator_cases import require

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
HEIGHT, WIDTH = 9, 11
#: Of the second, some cells meet nothing but padding wherever they are.
GRIDS = {'13': SharingGrid(13), '31': SharingGrid(31)}
TENSORS = 'input', 'weight', 'output gradient'
RESULTS = 'output', 'input gradient', 'weight gradient'


@pytest.fixture
def kernels():
    """The library; scratch memory that is read before it is written is NaN."""
    require('cpp')
    library = BACKENDS['cpp'].library
    before = library.instruction_set
    library.poison_scratch(True)
    yield library
    library.poison_scratch(False)
    library.instruction_set = before


def draw(
    grid: SharingGrid, images: int = 1, channels: int = 1, signed: bool = False
):
    """Tensors of 1 and 2 or, if ``signed``, of -2 to 2, with -0 for 0."""
    cells, maps = grid.num_cells, (images, channels, HEIGHT, WIDTH)
    most = 2 if signed else -1
    return tuple(
        -torch.randint(-2, most + 1, shape).double()
        for shape in (maps, (channels, 1, cells, cells), maps)
    )


def run(
    kernels, tensors: Sequence[Tensor], grid: SharingGrid, dtypes=DTYPES
) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """The results of the kernels for each instruction set and dtype."""
    for name in kernels.instruction_sets():
        kernels.instruction_set = name
        for dtype in dtypes:
            input, weight, grad_output = (x.to(dtype) for x in tensors)
            leaves = [x.clone().requires_grad_() for x in (input, weight)]
            output = peripheral_conv2d(*leaves, grid, backend='cpp')
            grads = torch.autograd.grad(output, leaves, grad_output)
            yield f'{name}, {dtype}', (output.detach(), *grads)


def truth(
    tensors: Sequence[Tensor], grid: SharingGrid, padding: bool = False
) -> Sequence[Tensor]:
    """The results in float64, one product for every output and position.

    With ``padding`` there are products with the zeros around the map, too.
    """
    input, weight, grad_output = tensors
    size, cells = grid.kernel_size, range(grid.num_cells)
    cell_of = torch.tensor([a for a in cells for _ in range(grid.sizes[a])])

    def patches(values: Tensor) -> Tensor:
        """``(N, C, H, W, K, K)``: what the kernel covers at every output."""
        values = F.pad(values, [size // 2] * 4)
        return values.unfold(2, size, 1).unfold(3, size, 1)

    counts = (patches(torch.ones_like(input)) > 0) | padding

    def convolve(values: Tensor, weight: Tensor) -> Tensor:
        kernel = weight[:, 0, cell_of][..., cell_of][:, None, None]
        products = patches(values) * kernel
        return products.where(counts, 0).sum((-1, -2))

    products = patches(input) * grad_output[..., None, None]
    kernel_grad = products.where(counts, 0).sum((0, 2, 3))
    weight_grad = torch.empty_like(weight)
    for a in cells:
        for b in cells:
            cell = kernel_grad[:, cell_of == a][..., cell_of == b]
            weight_grad[:, 0, a, b] = cell.sum((-1, -2))
    return (
        convolve(input, weight),
        convolve(grad_output, weight.flip(2, 3)),
        weight_grad,
    )


def check(
    where: str,
    actual: Sequence[Tensor],
    *expected: Sequence[Tensor],
    loose: Sequence[str] = (),
) -> None:
    """Every number is one of those expected; 0 and -0 are the same.

    In the results called ``loose`` an infinity will do for a NaN.
    """
    for name, got, *allowed in zip(RESULTS, actual, *expected, strict=True):
        right = torch.zeros(got.shape, dtype=torch.bool)
        for each in allowed:
            each = each.to(got.dtype)
            nan = ~got.isfinite() if name in loose else got.isnan()
            right |= (got == each) | (each.isnan() & nan)
        wrong = (~right).nonzero().tolist()
        assert not wrong, f'{where}, {name}: {len(wrong)} as at {wrong[0]}'


def map_places():
    """The centre, a border, a corner, and two that are met at once."""
    return [(4, 5)], [(0, 6)], [(8, 10)], [(3, 0), (7, 9)]


def ring_places(grid: SharingGrid, ring: int):
    """Cells that far from the centre: a corner, two sides, all of them."""
    middle = grid.num_cells // 2
    first, last = middle - ring, middle + ring
    cells = range(first, last + 1)
    every = [(a, b) for a in cells for b in cells if {a, b} & {first, last}]
    return [(first, first)], [(first, middle), (middle, last)], every


#: What is made not finite, and where.
CASES = {
    f'{tensor}{place} of {name}': (grid, TENSORS.index(tensor), places)
    for name, grid in GRIDS.items()
    for tensor, place, places in (
        ('input', '', map_places()),
        ('output gradient', '', map_places()),
        *(
            ('weight', f' ring {ring}', ring_places(grid, ring))
            for ring in range(grid.num_cells // 2 + 1)
        ),
    )
}


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('grid,which,places', CASES.values(), ids=CASES)
def test_not_finite(kernels, grid, which, places, signed):
    """In planes of their own, of which the last stay as they are.

    Padding may count as zeros or as nothing, which differ here. Numbers of a
    cell are summed before they are multiplied: of a sum of infinities of both
    signs, or of one and 0 times another, the infinity may be what is left.
    """
    values = torch.nan, torch.inf, -torch.inf
    cases = [(value, each) for value in values for each in places]
    # Small maps of several images are computed side by side.
    planes = (2, len(cases) + 1) if which == 1 else (3, len(cases) // 3 + 1)
    tensors = draw(grid, *planes, signed)
    for plane, (value, each) in zip(
        tensors[which].flatten(0, 1), cases, strict=False
    ):
        for row, column in each:
            plane[row, column] = value
    expected, padded = (truth(tensors, grid, pad) for pad in (False, True))
    loose = (RESULTS[:2] if which == 1 else RESULTS[2:]) if signed else ()
    for where, actual in run(kernels, tensors, grid):
        check(where, actual, expected, padded, loose=loose)


#: The exponents of scales, as parts of that of the least number.
SCALES = {
    'input': (1, 0, 0),
    'weight': (0, 1, 0),
    'output gradient': (0, 0, 1),
    'products': (0.5, 0.5, 0.5),
}


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('parts', SCALES.values(), ids=SCALES)
def test_denormals(kernels, dtype, parts):
    info = torch.finfo(dtype)
    least = math.log2(info.smallest_normal * info.eps)
    grid = SharingGrid(13)
    tensors = [
        tensor * 2 ** math.ceil(least * part)
        for tensor, part in zip(draw(grid, 3, 3, True), parts, strict=True)
    ]
    expected = truth(tensors, grid)
    for where, actual in run(kernels, tensors, grid, [dtype]):
        check(where, actual, expected)
    # Nor may the library have told the CPU to flush them everywhere.
    assert all(results.to(dtype).any() for results in expected[:2])


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('which', range(3), ids=TENSORS)
def test_lost_digits(kernels, dtype, which):
    """A sum loses them to a large number that is part of it, no other does."""
    eps = torch.finfo(dtype).eps
    grid, large = SharingGrid(13), 4 / eps
    tensors = draw(grid)
    tensors[which][..., 0, 6] = large
    tensors[which][..., 1, 6] = -large
    expected = truth(tensors, grid)
    sizes = truth([tensor.abs() for tensor in tensors], grid)
    small = [size < large for size in sizes]
    assert any(at.any() for at in small)
    for where, actual in run(kernels, tensors, grid, [dtype]):
        for got, wanted, size in zip(actual, expected, sizes, strict=True):
            assert ((got - wanted).abs() <= 16 * eps * size).all(), where
        kept, wanted = (
            [x.where(at, 0) for x, at in zip(results, small, strict=True)]
            for results in (actual, expected)
        )
        check(where, kept, wanted)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('sizes', [(1, 1, 1), (3,)])
def test_overflow(kernels, dtype, sizes):
    """Where products would not, the sum of a cell does."""
    large = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1)
    planes = (3, large), (len(sizes), 2**-4), (3, 2**-7)
    tensors = [
        torch.full((1, 1, size, size), value, dtype=torch.float64)
        for size, value in planes
    ]
    grid = SharingGrid.from_sizes(sizes)
    expected = list(truth(tensors, grid))
    # float16 is computed as float32.
    if sizes == (3,) and dtype != torch.float16:
        expected[0] = torch.full_like(expected[0], torch.inf)
        expected[2] = torch.full_like(expected[2], torch.inf)
    for where, actual in run(kernels, tensors, grid, [dtype]):
        check(where, actual, expected)
