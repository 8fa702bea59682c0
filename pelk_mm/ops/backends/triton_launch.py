"""What one call of the Triton backend launches, worked out once and kept."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from math import gcd
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .triton_plan import (
    Plan,
    Tiles,
    copy_plan,
    make_plan,
    make_tables,
    power_of_two,
    round_up,
)

# Channels go in groups whose scratch stays below this; one that is larger by
# itself goes alone. Every group has launches of its own.
_SCRATCH_BYTES = 256 << 20
# The last dimension of a CUDA grid.
_MAX_CHANNELS = 65535


@lru_cache(maxsize=1)
def kernels() -> SimpleNamespace:
    """All kernels by name; importing them imports triton."""
    from . import triton_kernels, triton_norm_kernels, triton_residual_kernels

    modules = triton_residual_kernels, triton_norm_kernels, triton_kernels
    return SimpleNamespace(**ChainMap(*map(vars, modules)))


class Launch:
    """A kernel and all its arguments but the tensors, which come first.

    At every launch Triton works out which of the compiled kernels it needs,
    which takes the host longer than all the rest of a launch, so it is asked
    once. The answer depends on the device, and on dtype and alignment of the
    tensors: a launch is for one of each.
    """

    def __init__(
        self,
        name: str,
        grid: tuple[int, ...],
        *numbers: float,
        **constants: Any,
    ) -> None:
        self._kernel = getattr(kernels(), name)
        self._grid = (*grid, 1, 1)[:3]
        self._numbers, self._constants = numbers, constants
        self._compiled: tuple[Callable, tuple] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self._compiled is not None:
            launch, rest = self._compiled
            launch(*tensors, *rest)
            return
        compiled = self._kernel[self._grid](
            *tensors, *self._numbers, **self._constants
        )
        # The interpreter compiles nothing.
        if compiled is not None and kernels().COMPILED_TAKES_ALL:
            names = self._kernel.arg_names[len(tensors) + len(self._numbers) :]
            constants = (self._constants[name] for name in names)
            rest = (*self._numbers, *constants)
            self._compiled = compiled[self._grid], rest


class View(NamedTuple):
    """``(N, C, H, W)``, as far as launches depend on it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    start: int  # bytes behind a multiple of 16

    @staticmethod
    def of(tensor: Tensor) -> View:
        start = tensor.data_ptr() % 16
        return View(
            tensor.shape, tensor.stride(), tensor.dtype, tensor.device, start
        )

    def part(self, channels: slice) -> View:
        batch, _, *size = self.shape
        skipped = channels.start * self.strides[1] * self.dtype.itemsize
        return self._replace(
            shape=(batch, channels.stop - channels.start, *size),
            start=(self.start + skipped) % 16,
        )

    def runs(self) -> tuple[int, int]:
        """How many channels, and columns, one access of 16 bytes may take.

        They are adjacent in memory and every run of so many is aligned, as
        is the end of the dimension. One of the two numbers is 1.
        """
        strides, size = list(self.strides), self.dtype.itemsize
        if 1 not in (strides[1], strides[3]):
            return 1, 1
        fastest = 1 if strides[1] == 1 else 3
        del strides[fastest]
        run = gcd(16, self.start) // size
        run = gcd(run, self.shape[fastest], *strides)
        return (run, 1) if fastest == 1 else (1, run)


class Work:
    """The launches for tensors like one and a grid; see :func:`make_work`.

    Without a ``layout`` inputs and results are in planar order, ``(C, N, H,
    padded)`` given as ``(N, C, H, padded)``: with zeros behind the columns of
    an input, and anything behind those of a result. A grid whose cells are
    all ones can read the maps of another one: it takes their tiles, and the
    rows that they have on top.
    """

    def __init__(
        self,
        view: View,
        grid: SharingGrid,
        layout: torch.memory_format | None,
        has_bias: bool,
        tiles: Tiles | None = None,
        top: int | None = None,
    ) -> None:
        self.view, self.grid = view, grid
        self.layout, self.has_bias = layout, has_bias
        batch, channels, height, width = view.shape
        self.lines = batch * height
        narrow = view.dtype.itemsize < 4
        size = width, grid.kernel_size
        self.tiles = tiles or Tiles.forward(
            self.lines, channels, *size, narrow
        )
        self.grad_tiles = Tiles.weight_grad(self.lines, width, narrow)
        self.padded = self.tiles.pad(width)
        means = view.dtype == torch.float16
        reach = self.tiles.reach(*size)
        self.plan = make_plan(grid.sizes, height, reach, means)
        groups = self.tiles.group, self.grad_tiles.group
        self.tables = make_tables(self.plan, height, *groups, view.device)
        self.top = self.plan.top if top is None else top
        # Elements of one map and channel.
        self.map_size = batch * (self.top + height) * self.padded
        # Numbers of 16 bytes, the widest access.
        self.phases = 16 // view.dtype.itemsize
        first, last = self.tiles.taps(*size)
        self.first_tap = (first - self.phases) // 16 * 16
        self.taps = round_up(last + 1 - self.first_tap, 16)
        self.groups = [Group(self, part) for part in self._channel_groups()]
        self._rows_launches: dict[tuple[bool, torch.dtype], Launch] = {}

    def _channel_groups(self) -> Iterator[slice]:
        """Slices of channels whose scratch is small enough."""
        channels, size = self.view.shape[1], self.view.dtype.itemsize
        scratch = self.plan.num_maps * self.map_size + self.lines * self.padded
        most = _SCRATCH_BYTES // (scratch * size)
        # Whole sectors of a channels-last tensor, if it is more than one.
        most = most // 16 * 16 if most >= 16 else max(most, 1)
        most = min(most, channels, _MAX_CHANNELS)
        for first in range(0, channels, most):
            yield slice(first, min(first + most, channels))

    def write_rows(self, weight: Tensor, flipped: bool = False) -> Tensor:
        """The kernel's k' distinct rows, ``(C, k', phases, taps)``."""
        channels, cells = len(weight), self.grid.num_cells
        shape = channels, cells, self.phases, self.taps
        rows = weight.new_empty(shape, dtype=self.view.dtype)
        launch = self._rows_launch(flipped, weight.dtype)
        launch(weight.contiguous(), rows, self.tables.column_cells)
        return rows

    def _rows_launch(self, flipped: bool, dtype: torch.dtype) -> Launch:
        launch = self._rows_launches.get((flipped, dtype))
        if launch is None:
            cells, block = self.grid.num_cells, 1024
            blocks = -(-self.phases * self.taps // block)
            launch = self._rows_launches[flipped, dtype] = Launch(
                'rows_kernel',
                (self.view.shape[1] * cells, blocks),
                cells,
                self.grid.kernel_size,
                self.first_tap,
                self.taps,
                int(flipped),
                PHASES=self.phases,
                BLOCK=block,
            )
        return launch

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        precise = self.view.dtype == torch.float32
        return dict(
            BLOCK_M=tiles.lines,
            BLOCK_X=tiles.columns,
            BLOCK_K=tiles.chunk,
            GROUP=tiles.group,
            PRECISION='tf32x3' if precise else 'ieee',
            num_warps=tiles.warps,
        )


#: A Work for every kind of call, kept.
make_work = lru_cache(maxsize=4096)(Work)


class Group:
    """The launches for some of the channels."""

    def __init__(self, work: Work, channels: slice) -> None:
        self.work, self.channels = work, channels
        self.view = work.view.part(channels)
        self.count = self.view.shape[1]
        self._whole = self.count == work.view.shape[1]

    def fill(self, input: Tensor) -> Tensor:
        """``(maps, C, N, top + H, padded)``: all boxes of the plan's ladder.

        ``input`` has all channels, as have the tensors below.
        """
        launch, shape = self._fill
        maps = input.new_empty(shape)
        launch(self._of(input), maps)
        return maps

    def copy(self, input: Tensor) -> Tensor:
        """``(1, C, N, H, padded)``: no boxes."""
        launch, shape = self._copy
        planes = input.new_empty(shape)
        launch(self._of(input), planes)
        return planes

    def convolve(
        self, maps: Tensor, rows: Tensor, bias: Tensor | None, output: Tensor
    ) -> None:
        """Write the convolution of what the maps were made of."""
        output = planes = self._of(output)
        if self._interleave is not None:
            planes = maps.new_empty(self._planes)
        tables = self.work.tables
        if not self._whole:
            rows = rows[self.channels]
            bias = None if bias is None else bias[self.channels]
        self._convolve(maps, rows, bias, planes, tables.steps, tables.levels)
        if self._interleave is not None:
            self._interleave(planes, output)

    def correlate(self, maps: Tensor, planes: Tensor) -> Tensor:
        """``(C, 1, k', k')`` in float32.

        Of the maps of an output's gradient and a copy of the input.
        """
        launch, shape = self._correlate
        partial = maps.new_empty(shape, dtype=torch.float32)
        tables = self.work.tables
        launch(
            maps,
            planes,
            partial,
            tables.cells,
            tables.counts,
            tables.cell_steps,
            tables.cell_starts,
        )
        return partial.sum(0)

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor if self._whole else tensor[:, self.channels]

    @cached_property
    def _fill(self) -> tuple[Launch, tuple[int, ...]]:
        view, padded = self.view, self.work.padded
        if self.work.layout is None:
            view = view._replace(shape=(*view.shape[:3], padded))
        return maps_launch(view, self.work.plan, padded)

    @cached_property
    def _copy(self) -> tuple[Launch, tuple[int, ...]]:
        return maps_launch(self.view, copy_plan(), self.work.padded)

    @property
    def _direct(self) -> bool:
        """Whether planes are the output's own memory."""
        layout = self.work.layout
        one = layout is not None and self.work.view.shape[1] == 1
        return one or layout == torch.contiguous_format

    @property
    def _planes(self) -> tuple[int, ...]:
        batch, channels, height, _ = self.view.shape
        return channels, batch, height, self.work.padded

    @cached_property
    def _convolve(self) -> Launch:
        work, tiles = self.work, self.work.tiles
        batch, channels, height, width = self.view.shape
        columns = width if self._direct else work.padded
        strides = height * columns, work.lines * columns
        if self._direct:
            strides = work.view.shape[1] * strides[0], strides[0]
        blocks = -(-work.lines // tiles.lines), -(-width // tiles.columns)
        return Launch(
            'forward_kernel',
            (*blocks, channels),
            batch,
            height,
            width,
            work.top,
            work.map_size,
            work.grid.num_cells,
            work.grid.kernel_size,
            work.first_tap,
            work.taps,
            *strides,
            columns,
            work.padded,
            # All strides are multiples of the lowest.
            RUN_W=gcd(work.phases, columns),
            LEVELS=len(work.tables.levels),
            HAS_BIAS=work.has_bias,
            PHASES=work.phases,
            maxnreg=128,
            # Loading ahead would bypass the first-level cache, which holds
            # most of a tile shifted by a few rows.
            num_stages=1,
            **work.constants(tiles),
        )

    @cached_property
    def _interleave(self) -> Launch | None:
        if self._direct or self.work.layout is None:
            return None
        shape, channels = self.view.shape, self.work.view.shape[1]
        height, width = shape[2:]
        strides = height * width * channels, 1, width * channels, channels
        whole = self.work.view._replace(strides=strides, start=0)
        return interleave_launch(whole.part(self.channels), self.work.padded)

    @cached_property
    def _correlate(self) -> tuple[Launch, tuple[int, ...]]:
        work, tiles = self.work, self.work.grad_tiles
        batch, channels, height, width = self.view.shape
        cells, kernel_size = work.grid.num_cells, work.grid.kernel_size
        pairs, chunks = tiles.pairs(width, kernel_size)
        groups = len(work.tables.counts)
        splits, split_lines = tiles.splits(
            work.lines, channels * groups * pairs
        )
        launch = Launch(
            'weight_grad_kernel',
            (pairs, groups * splits, channels),
            batch,
            channels,
            height,
            work.top,
            work.map_size,
            cells,
            kernel_size,
            splits,
            split_lines,
            chunks,
            work.padded,
            # Three TF32 products leave no room to load ahead.
            num_stages=1 if work.view.dtype == torch.float32 else 3,
            **work.constants(tiles),
        )
        return launch, (splits * pairs, channels, 1, cells, cells)


def maps_launch(
    view: View, plan: Plan, padded: int
) -> tuple[Launch, tuple[int, ...]]:
    """For ``maps_kernel``, and the shape of the maps."""
    batch, channels, height, _ = view.shape
    lines = plan.top + height
    # A tile of 16 KiB, wide enough for whole memory sectors on both sides.
    size, block_w = view.dtype.itemsize, min(padded & -padded, 32)
    most = max(64 // size, 2 * plan.boxes[0])
    rows = power_of_two(lines, most)
    step = rows if rows >= lines else rows - plan.top
    block_c = (16 << 10) // (size * rows * block_w)
    blocks = batch * -(-lines // step) * (padded // block_w)
    run_c, run_w = view.runs()
    launch = Launch(
        'maps_kernel',
        (blocks * -(-channels // block_c),),
        *view.shape,
        *view.strides,
        channels * batch * lines * padded,
        padded,
        step,
        BOXES=sum(plan.boxes),
        LARGEST=plan.boxes[0],
        MEANS=plan.means,
        RUN_C=min(run_c, block_c),
        RUN_W=run_w,
        ROWS=rows,
        BLOCK_C=block_c,
        BLOCK_W=block_w,
        num_warps=8,
    )
    return launch, (plan.num_maps, channels, batch, lines, padded)


def interleave_launch(view: View, padded: int) -> Launch:
    """For ``interleave_kernel``, into a tensor like that."""
    grid, constants = interleave_tiles(view, padded)
    numbers = *view.shape, *view.strides, padded
    return Launch('interleave_kernel', grid, *numbers, **constants)


def interleave_tiles(
    view: View, padded: int
) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and constants of what writes planes into a tensor like that."""
    batch, channels, height, _ = view.shape
    block_w = min(padded & -padded, 32)
    block_c = 2048 // block_w
    run_c, run_w = view.runs()
    grid = batch * height, -(-channels // block_c) * (padded // block_w)
    return grid, dict(
        RUN_C=run_c, RUN_W=run_w, BLOCK_C=block_c, BLOCK_W=block_w, num_warps=4
    )
