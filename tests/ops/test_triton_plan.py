"""Boxes, tables and tiles of the Triton backend, against the grids."""

import pytest
import torch

from pelk_mm.ops.backends.triton_plan import Tiles, make_plan, make_tables
from tests.helpers.operator_cases import GRIDS


@pytest.mark.parametrize('means', [False, True])
@pytest.mark.parametrize('height', [1, 7, 56, 200])
@pytest.mark.parametrize('grid', GRIDS)
def test_covers_every_row_once(grid, height, means):
    grid = GRIDS[grid]
    plan = make_plan(grid.sizes, height, 64, means)
    radius = grid.kernel_size // 2
    covered = []
    for box, level in zip(plan.boxes, plan.cells, strict=True):
        for cell, shift, count in level:
            rows = range(shift, shift + box * count)
            covered += [(row, cell) for row in rows]
    cells = [cell for cell, size in enumerate(grid.sizes) for _ in range(size)]
    assert sorted(covered) == [
        (row - radius, cell)
        for row, cell in enumerate(cells)
        if abs(row - radius) < height
    ]
    assert plan.boxes[-1] == 1
    assert list(plan.boxes) == sorted(set(plan.boxes), reverse=True)


def test_products_grow_with_cells_not_with_rows():
    counts = {}
    for name in ('51', '101'):
        grid = GRIDS[name]
        for means in (False, True):
            plan = make_plan(grid.sizes, 56, 64, means)
            counts[name, means] = plan.num_products
            assert plan.num_products <= 2.1 * grid.num_cells
            assert plan.num_maps <= 7
    assert counts['101', True] <= 1.3 * counts['51', True]


@pytest.mark.parametrize('means', [False, True])
@pytest.mark.parametrize('height', [1, 7, 56])
@pytest.mark.parametrize('grid', GRIDS)
def test_tables(grid, height, means):
    """Both tables, with their factors, are sums of the right rows."""
    grid = GRIDS[grid]
    plan = make_plan(grid.sizes, height, 64, means)
    tables = make_tables(plan, height, 4, 2, torch.device('cpu'))
    boxes, maps = [], []
    for box, parts in zip(plan.boxes, plan.parts, strict=True):
        boxes[:0] = [box] * parts
        maps[:0] = [1 / box if means else 1, 0][:parts]
    expected = torch.zeros(grid.num_cells, 2 * height - 1)
    column = 0
    for cell, size in enumerate(grid.sizes):
        for row in range(column, column + size):
            offset = row - grid.kernel_size // 2
            if abs(offset) < height:
                expected[cell, offset + height - 1] = 1
        column += size

    def add(total, map, down, box):
        """What a step brings an output row, of the rows around it."""
        if box == 0:
            assert down >= height
            return
        assert box == boxes[map]
        for row in range(down, down + box):
            if abs(row) < height:
                total[row + height - 1] += maps[map]

    totals = torch.zeros_like(expected)
    steps, past = tables.steps.tolist(), 0
    for begin, end, factor in tables.levels.tolist():
        assert begin == past
        for cell, *step in steps[4 * begin : 4 * end]:
            add(totals[cell], *step)
        totals *= factor
        past = end
    assert 4 * past == len(steps)
    assert torch.equal(totals, expected)

    totals = torch.zeros_like(expected)
    cells = tables.cells.tolist()
    for index, (cell, factor) in enumerate(cells):
        total = torch.zeros(2 * height - 1)
        for step in range(tables.counts[index // 2]):
            before, *rest = tables.cell_steps[step, index].tolist()
            total *= before
            add(total, *rest)
        if cell >= 0:
            totals[cell] += total * factor
    assert torch.equal(totals, expected)
    assert tables.column_cells.bincount().tolist() == list(plan.sizes)


@pytest.mark.parametrize('kernel_size', [5, 51, 101])
@pytest.mark.parametrize('width', [1, 7, 56, 64, 65, 128, 334, 512])
def test_chunks_hold_all_columns_in_reach(width, kernel_size):
    for tiles in (
        Tiles.forward(512, 46, width, kernel_size, True),
        Tiles.forward(16, 46, width, kernel_size, False),
        Tiles.weight_grad(512, width, True),
    ):
        padded = tiles.pad(width)
        assert width <= padded < width + tiles.chunk
        assert padded % tiles.chunk == 0
        reach = tiles.reach(width, kernel_size)
        assert reach >= min(width, tiles.columns // 2 + kernel_size // 2)
        pairs, chunks = tiles.pairs(width, kernel_size)
        assert chunks * tiles.chunk == reach
        assert pairs == -(-width // tiles.columns) * chunks
        first, last = tiles.taps(width, kernel_size)
        assert first <= max(0, kernel_size // 2 - width + 1)
        assert last >= min(kernel_size - 1, kernel_size // 2 + width - 1)


def test_splits_hold_all_lines():
    tiles = Tiles.weight_grad(3584, 56, True)
    for programs in (1, 600, 5000):
        count, size = tiles.splits(3584, programs)
        assert (count - 1) * size < 3584 <= count * size
        assert size % tiles.lines == 0
