"""Which row boxes, tiles and splits the Triton kernels use; plain Python.

``triton_kernels.py`` explains the words: ladder, box, map, line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, combinations, pairwise

import torch
from torch import Tensor

# Box sizes a ladder may have besides 1; powers of two scale exactly.
_BOXES = (2, 4, 8, 16, 32)
# What one more map costs (written once, read through the caches) in matrix
# products over 64 columns, by counting an H100's bytes and multiply-adds.
_MAP_COST = {False: 1.0, True: 3.0}
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
    narrow: bool  # 16 bits: a box of more than one row takes two maps
    boxes: tuple[int, ...]  # rows per box, descending, the last one 1
    cells: tuple[tuple[tuple[int, int, int], ...], ...]

    @property
    def top(self) -> int:
        """Rows above the map in which a box can start and still meet it."""
        return self.boxes[0] - 1

    @property
    def parts(self) -> tuple[int, ...]:
        """Maps per level."""
        return tuple(2 if self.narrow and box > 1 else 1 for box in self.boxes)

    @cached_property
    def num_maps(self) -> int:
        return sum(self.parts)

    @cached_property
    def num_products(self) -> int:
        """Matrix products per tile and chunk of columns."""
        return sum(
            part * count
            for part, level in zip(self.parts, self.cells, strict=True)
            for _, _, count in level
        )


@lru_cache(maxsize=512)
def make_plan(
    sizes: tuple[int, ...], height: int, columns: int, narrow: bool
) -> Plan:
    """The plan of least estimated cost, over all ladders.

    Rows of the kernel that never meet a map of ``height`` rows are left out;
    ``columns`` are those that one product contracts over.
    """
    spans = _row_spans(sizes, height)
    longest = max(last - first for _, first, last in spans)
    useful = [box for box in _BOXES if box <= longest]
    plans = [
        _split(sizes, spans, (*reversed(rungs), 1), narrow)
        for count in range(len(useful) + 1)
        for rungs in combinations(useful, count)
    ]
    return min(
        plans,
        key=lambda plan: (
            plan.num_products * columns / 64
            + plan.num_maps * _MAP_COST[narrow]
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
    narrow: bool,
) -> Plan:
    levels: list[list[tuple[int, int, int]]] = [[] for _ in boxes]
    for cell, first, past in spans:
        for box, level in zip(boxes, levels, strict=True):
            if count := (past - first) // box:
                level.append((cell, first, count))
                first += count * box
    return Plan(sizes, narrow, boxes, tuple(map(tuple, levels)))


@dataclass(frozen=True)
class Tables:
    """A plan as the kernels read it; int32 but for ``column_cells``."""

    ladder: Tensor  # (levels, 4): box, maps, first map, box over next
    cells: Tensor  # (entries, 3): cell, shift, count; level by level
    level_ends: Tensor  # (levels + 1,): where a level's entries begin
    boxes_of: Tensor  # (levels, k', 2): shift and count, 0 for none
    cell_starts: Tensor  # (k' + 1,): first column of each cell, and K
    column_cells: Tensor  # (K,) int64: the cell of each column


@lru_cache(maxsize=512)
def make_tables(plan: Plan, device: torch.device) -> Tables:
    """Copy a plan to the device, once."""
    # Maps lie smallest box first.
    first_maps = [*accumulate(reversed(plan.parts[1:]), initial=0)][::-1]
    steps = [box // below for box, below in pairwise((*plan.boxes, 1))]
    ladder = list(zip(plan.boxes, plan.parts, first_maps, steps, strict=True))
    boxes_of = torch.zeros(len(plan.boxes), len(plan.sizes), 2)
    for index, level in enumerate(plan.cells):
        for cell, shift, count in level:
            boxes_of[index, cell, 0], boxes_of[index, cell, 1] = shift, count
    columns = [
        cell for cell, size in enumerate(plan.sizes) for _ in range(size)
    ]

    def table(rows: object) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int32).to(device)

    return Tables(
        table(ladder),
        table([row for level in plan.cells for row in level]),
        table([0, *accumulate(map(len, plan.cells))]),
        table(boxes_of),
        table([0, *accumulate(plan.sizes)]),
        torch.tensor(columns).to(device),
    )


@dataclass(frozen=True)
class Tiles:
    """Block sizes: the first three are powers of two of at least 16."""

    lines: int  # image rows of a tile, one image behind the other
    columns: int  # of a tile
    chunk: int  # input columns that a product contracts over
    padded: int  # the map's width rounded up to whole chunks
    warps: int  # per program

    @staticmethod
    def forward(lines: int, channels: int, width: int, narrow: bool) -> Tiles:
        """For ``forward_kernel`` on ``channels`` planes of ``lines`` rows."""
        columns = _power_of_two(width, 64)
        # A wide map wastes less at the ends of the kernel's reach with short
        # chunks; a map of one tile is one chunk.
        chunk = columns if narrow and width <= 64 else min(columns, 32)
        if narrow and lines * channels * width >= 256 * 128 * 64:
            # Enough work for large tiles, which share each Toeplitz tile
            # among more lines.
            most, warps = min(256, 128 * 64 // columns), 8
        else:
            most, warps = 64, 4
        rows, padded = _power_of_two(lines, most), _round_up(width, chunk)
        return Tiles(rows, columns, chunk, padded, warps)

    @staticmethod
    def weight_grad(lines: int, width: int, narrow: bool) -> Tiles:
        """For ``weight_grad_kernel``, which contracts over the lines."""
        columns = _power_of_two(width, 64)
        most = (64 if narrow else 16) * 64 // columns
        rows, padded = _power_of_two(lines, most), _round_up(width, columns)
        return Tiles(rows, columns, columns, padded, 4)

    def reach(self, width: int, kernel_size: int) -> int:
        """Columns of the input that the widest met tile contracts over."""
        return self.chunk * max(
            past - first for first, past in self._chunks(width, kernel_size)
        )

    def pairs(self, width: int, kernel_size: int) -> tuple[int, int]:
        """Tiles of columns times most chunks of any, and the latter."""
        chunks = self.reach(width, kernel_size) // self.chunk
        return -(-width // self.columns) * chunks, chunks

    def splits(self, lines: int, programs: int) -> tuple[int, int]:
        """How often to split a channel's lines, and the lines of one split.

        ``programs`` are those without a split.
        """
        wanted = min(_PROGRAMS // programs, lines // (4 * self.lines))
        size = _round_up(-(-lines // max(wanted, 1)), self.lines)
        return -(-lines // size), size

    def _chunks(
        self, width: int, kernel_size: int
    ) -> Iterator[tuple[int, int]]:
        radius = kernel_size // 2
        for left in range(0, width, self.columns):
            past = min(left + self.columns + radius, width)
            yield (max(left - radius, 0) // self.chunk, -(-past // self.chunk))


def _power_of_two(value: int, most: int) -> int:
    """``value`` rounded up to a power of two between 16 and ``most``."""
    return min(most, max(16, 1 << (value - 1).bit_length()))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
