"""Which row boxes, tiles and splits the Triton kernels use; plain Python.

``triton_kernels.py`` explains the words: ladder, box, map, line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain, combinations, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Box sizes a ladder may have besides 1; powers of two scale exactly.
_BOXES = (2, 4, 8, 16, 32)
# What one more map costs (written once, read through the caches) in matrix
# products over 64 columns.
_MAP_COST = 1.0
# The weight's gradient is split until about this many programs share it.
_PROGRAMS = 2048


@dataclass(frozen=True)
class Plan:
    """Every row cell of a grid as a sum of shifted boxes.

    ``cells`` has for every level of ``boxes`` the cells that use it, as
    ``(cell, shift, count)``: boxes of ``count`` consecutive runs of rows, the
    first one ``shift`` rows from the output's row.
    """

    sizes: tuple[int, ...]  # of the grid's cells
    means: bool  # float16: a box of more than one row is a mean in two maps
    boxes: tuple[int, ...]  # rows per box, descending, the last one 1
    cells: tuple[tuple[tuple[int, int, int], ...], ...]

    @property
    def top(self) -> int:
        """Rows above the map in which a box can start and still meet it."""
        return self.boxes[0] - 1

    @property
    def parts(self) -> tuple[int, ...]:
        """Maps per level."""
        return tuple(2 if self.means and box > 1 else 1 for box in self.boxes)

    @cached_property
    def num_maps(self) -> int:
        return sum(self.parts)

    @cached_property
    def num_products(self) -> int:
        """Matrix products per tile and chunk of columns."""
        return sum(map(len, self.steps))

    @cached_property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """What is multiplied and added up, level by level."""
        # Maps lie smallest box first.
        first = self.num_maps
        levels = []
        for box, parts, level in zip(
            self.boxes, self.parts, self.cells, strict=True
        ):
            first -= parts
            levels.append(
                tuple(
                    Step(cell, first + part, shift + box * index, box)
                    for cell, shift, count in level
                    for index in range(count)
                    for part in range(parts)
                )
            )
        return tuple(levels)


class Step(NamedTuple):
    """One product: a map, some rows further down, with a cell's weights."""

    cell: int
    map: int
    down: int
    box: int


@lru_cache(maxsize=512)
def make_plan(
    sizes: tuple[int, ...], height: int, columns: int, means: bool
) -> Plan:
    """The plan of least estimated cost, over all ladders.

    Rows of the kernel that never meet a map of ``height`` rows are left out;
    ``columns`` are those that one product contracts over.
    """
    spans = _row_spans(sizes, height)
    longest = max(last - first for _, first, last in spans)
    useful = [box for box in _BOXES if box <= longest]
    plans = [
        _split(sizes, spans, (*reversed(rungs), 1), means)
        for count in range(len(useful) + 1)
        for rungs in combinations(useful, count)
    ]
    return min(
        plans,
        key=lambda plan: (
            plan.num_products * columns / 64 + plan.num_maps * _MAP_COST
        ),
    )


def copy_plan() -> Plan:
    """A plan whose only map is the input itself."""
    return Plan((1,), False, (1,), (((0, 0, 1),),))


def _row_spans(
    sizes: tuple[int, ...], height: int
) -> list[tuple[int, int, int]]:
    """``(cell, first, past)`` row offsets of the cells that meet the map."""
    ends = list(accumulate(sizes, initial=-(sum(sizes) // 2)))
    spans = []
    for cell, (first, past) in enumerate(pairwise(ends)):
        first, past = max(first, 1 - height), min(past, height)
        if first < past:
            spans.append((cell, first, past))
    return spans


def _split(
    sizes: tuple[int, ...],
    spans: list[tuple[int, int, int]],
    boxes: tuple[int, ...],
    means: bool,
) -> Plan:
    levels: list[list[tuple[int, int, int]]] = [[] for _ in boxes]
    for cell, first, past in spans:
        for box, level in zip(boxes, levels, strict=True):
            if count := (past - first) // box:
                level.append((cell, first, count))
                first += count * box
    return Plan(sizes, means, boxes, tuple(map(tuple, levels)))


@dataclass(frozen=True)
class Tables:
    """A plan as the kernels read it, in int32.

    As many products as a kernel's tile takes are made in one go. Those that
    are missing meet no row.
    """

    steps: Tensor  # (groups * steps, 4): cell, map, down, box
    levels: Tensor  # (levels, 3): first group, past the last, factor behind
    cells: Tensor  # (groups * cells, 2): a cell or -1, factor behind its steps
    counts: Tensor  # (groups,): most steps of a group's cells
    cell_steps: Tensor  # (steps, groups * cells, 4): factor before, map, ...
    column_cells: Tensor  # (K,): the cell of each column
    cell_starts: Tensor  # (k' + 1,): first column of each cell, and K


@lru_cache(maxsize=512)
def make_tables(
    plan: Plan, height: int, steps: int, cells: int, device: torch.device
) -> Tables:
    """Copy a plan to the device, once.

    ``steps`` of the forward pass go together, and ``cells`` of the weight's
    gradient.
    """
    nothing = Step(0, 0, height, 0)  # below every map
    columns = [
        cell for cell, size in enumerate(plan.sizes) for _ in range(size)
    ]
    tables = (
        *_step_tables(plan, steps, nothing),
        *_cell_tables(plan, cells, nothing),
        columns,
        [0, *accumulate(plan.sizes)],
    )
    arrays = [torch.tensor(rows, dtype=torch.int32) for rows in tables]
    # One copy, in which every table begins at a multiple of 16 bytes.
    flat = [pad(array.flatten(), (0, -array.numel() % 4)) for array in arrays]
    parts = torch.cat(flat).to(device).split([*map(len, flat)])
    return Tables(
        *(
            part[: array.numel()].view(array.shape)
            for part, array in zip(parts, arrays, strict=True)
        )
    )


def _step_tables(plan: Plan, group: int, nothing: Step) -> tuple[list, list]:
    """``steps`` and ``levels``. Sums, unlike means, are all one level."""
    levels = [list(level) for level in plan.steps]
    factors = [box // below for box, below in pairwise((*plan.boxes, 1))]
    if not plan.means:
        levels, factors = [[*chain(*levels)]], [1]
    for level in levels:
        level += [nothing] * (-len(level) % group)
    ends = accumulate((len(level) // group for level in levels), initial=0)
    rows = zip(pairwise(ends), factors, strict=True)
    return [*chain(*levels)], [(*groups, factor) for groups, factor in rows]


def _cell_tables(
    plan: Plan, group: int, nothing: Step
) -> tuple[list, list, list]:
    """``cells``, ``counts``, ``cell_steps``; cells of most steps first."""
    steps_of: list[list[Step]] = [[] for _ in plan.sizes]
    for step in chain(*plan.steps):
        steps_of[step.cell].append(step)
    order = sorted(enumerate(steps_of), key=lambda row: -len(row[1]))
    order += [(-1, [])] * (-len(order) % group)
    counts = [len(steps) for _, steps in order]
    cells, cell_steps = [], []
    for cell, steps in order:
        # A sum of means is brought to each step's box, at last to one row.
        boxes = [step.box if plan.means else 1 for step in steps] or [1]
        factors = [above // box for above, box in pairwise((boxes[0], *boxes))]
        rows = zip(factors, steps, strict=False)
        missing = [(1, *nothing[1:])] * (counts[0] - len(steps))
        cells.append((cell, boxes[-1]))
        cell_steps.append([(by, *step[1:]) for by, step in rows] + missing)
    return cells, counts[::group], [*zip(*cell_steps, strict=True)]


@dataclass(frozen=True)
class Tiles:
    """Block sizes: powers of two, the first three of at least 16."""

    lines: int  # image rows of a tile, one image behind the other
    columns: int  # of a tile
    chunk: int  # input columns that a product contracts over
    group: int  # products in one go, or cells of the weight's gradient
    warps: int  # per program

    @classmethod
    def forward(
        cls,
        lines: int,
        channels: int,
        width: int,
        kernel_size: int,
        narrow: bool,
    ) -> Tiles:
        """For ``forward_kernel`` on ``channels`` planes of ``lines`` rows."""
        columns = power_of_two(width, 64)
        if narrow and lines * channels * width >= 256 * 128 * 64:
            # Enough work for large tiles, which share each Toeplitz tile
            # among more lines.
            most, warps = 128, 8
        else:
            most, warps = 64, 4

        def tiles(chunk: int) -> Tiles:
            group = max((128 if narrow else 32) // chunk, 1)
            rows = power_of_two(lines, most)
            return cls(rows, columns, chunk, group, warps)

        # Short chunks waste less at the ends of the kernel's reach. A product
        # with long ones takes less time (by 15 % on an H200), in float32 too
        # many registers.
        if not narrow:
            return tiles(min(columns, 32))
        return min(
            (tiles(chunk) for chunk in {columns, min(columns, 32)}),
            key=lambda tiles: (
                tiles.reach(width, kernel_size)
                * (1.0 if tiles.chunk == columns else 1.15)
            ),
        )

    @classmethod
    def weight_grad(cls, lines: int, width: int, narrow: bool) -> Tiles:
        """For ``weight_grad_kernel``, which contracts over the lines."""
        columns = power_of_two(width, 64)
        most = (64 if narrow else 32) * min(64 // columns, 2)
        rows = power_of_two(lines, most)
        return cls(rows, columns, columns, 64 // columns, 4)

    def pad(self, width: int) -> int:
        """The map's width rounded up to whole chunks."""
        return round_up(width, self.chunk)

    def reach(self, width: int, kernel_size: int) -> int:
        """Columns of the input that the widest met tile contracts over."""
        return self.chunk * max(
            past - first for first, past in self._chunks(width, kernel_size)
        )

    def pairs(self, width: int, kernel_size: int) -> tuple[int, int]:
        """Tiles of columns times most chunks of any, and the latter."""
        chunks = self.reach(width, kernel_size) // self.chunk
        return -(-width // self.columns) * chunks, chunks

    def taps(self, width: int, kernel_size: int) -> tuple[int, int]:
        """First and last column of the kernel, from 0, in any product.

        Those below 0 and from K on have no weight.
        """
        lefts = range(0, width, self.columns)
        chunks = [*self._chunks(width, kernel_size)]
        radius = kernel_size // 2
        first = min(
            first * self.chunk - (left + self.columns - 1)
            for left, (first, _) in zip(lefts, chunks, strict=True)
        )
        last = max(
            past * self.chunk - 1 - left
            for left, (_, past) in zip(lefts, chunks, strict=True)
        )
        return first + radius, last + radius

    def splits(self, lines: int, programs: int) -> tuple[int, int]:
        """How often to split a channel's lines, and the lines of one split.

        ``programs`` are those without a split.
        """
        wanted = min(_PROGRAMS // programs, lines // (4 * self.lines))
        size = round_up(-(-lines // max(wanted, 1)), self.lines)
        return -(-lines // size), size

    def _chunks(
        self, width: int, kernel_size: int
    ) -> Iterator[tuple[int, int]]:
        radius = kernel_size // 2
        for left in range(0, width, self.columns):
            past = min(left + self.columns + radius, width)
            yield (max(left - radius, 0) // self.chunk, -(-past // self.chunk))


def power_of_two(value: int, most: int) -> int:
    """``value`` rounded up to a power of two between 16 and ``most``."""
    return min(most, max(16, 1 << (value - 1).bit_length()))


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
