"""Toeplitz products of row-box sums on the tensor cores, in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from math import gcd
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend
from .triton_plan import (
    Plan,
    Tiles,
    copy_plan,
    make_plan,
    make_tables,
    power_of_two,
    round_up,
)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Ampere: the oldest generation whose tensor cores know bfloat16 and TF32.
_MIN_CAPABILITY = (8, 0)
# Channels go in groups whose scratch stays below this; one that is larger by
# itself goes alone.
_SCRATCH_BYTES = 128 << 20
# The last dimension of a CUDA grid.
_MAX_CHANNELS = 65535


class TritonBackend(Backend):
    """Tensor-core kernels for NVIDIA GPUs.

    Work per output: k' products with a tile of 64 columns (in float16 two for
    the cells of several rows), instead of K^2 multiply-adds. float32 runs as
    three TF32 products, with an error near float32's own; the narrower dtypes
    in their own format, accumulated in float32. In bfloat16 sums of several
    rows are rounded to it once more. Results repeat bit by bit. Around a
    non-finite input more outputs turn non-finite than the kernel reaches.

    Scratch: the input once in planar order, rows padded to a multiple of 16
    to 64, and for some box sizes of rows once more (twice in float16): for
    PeLK's kernels 1 to 7 planes of the input's size in all, 4 for stage 1 of
    PeLK-T at 224 x 224 in bfloat16. One more plane holds a channels-last
    output, and one the input of the weight's gradient. Channels are taken in
    groups to keep this below 128 MiB. The weight's gradient has at most some
    thousand partial sums for each of its k' columns, or one per tile of the
    map if those are more. The weight is expanded to k' rows, each padded and
    as often as 16 bytes have numbers, never to K x K.
    """

    name = 'triton'

    @cached_property
    def _interpreted(self) -> bool | None:
        """Whether Triton's interpreter runs the kernels; None without it."""
        try:
            return _kernels().INTERPRETED
        # A broken installation raises more than ImportError.
        except Exception as error:
            self.failure = error
            return None

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype not in _DTYPES:
            known = ', '.join(map(str, _DTYPES))
            return f'it has no kernel for {dtype}, only for {known}'
        if self._interpreted is None:
            return f'importing triton failed: {self.failure!r}'
        if self._interpreted:
            return None
        if device.type != 'cuda':
            return (
                "it needs an NVIDIA GPU; elsewhere only Triton's interpreter "
                'runs it, for tests: set TRITON_INTERPRET=1 before anything '
                'imports triton'
            )
        return _why_not_on(device)

    def build(self) -> None:
        """Compile, load and run the smallest kernel once.

        Triton needs a C compiler and a cache it can write, and says so only
        when it launches.
        """
        if not self._interpreted:
            pixel = torch.zeros(1, 1, 1, 16, device='cuda')
            _interleave(pixel, torch.empty_like(pixel)[..., :1], 16)

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        work = _Work(input, grid)
        output = torch.empty_like(input, memory_format=layout)
        with _on(input.device):
            rows = work.write_rows(weight)
            for group in work.channel_groups():
                maps = _fill_maps(input[:, group], work.plan, work.padded)
                group_bias = None if bias is None else bias[group]
                work.convolve(maps, rows[group], group_bias, output[:, group])
        return output

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        work = _Work(input, grid)
        grads = []
        with _on(input.device):
            for group in work.channel_groups():
                maps = _fill_maps(
                    grad_output[:, group], work.plan, work.padded
                )
                grads.append(work.correlate(maps, input[:, group]))
        return torch.cat(grads).to(input.dtype).unsqueeze(1)

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        work = _Work(input, grid)
        grad_input = torch.empty_like(input, memory_format=layout)
        grads = []
        with _on(input.device):
            rows = work.write_rows(weight, flipped=True)
            for group in work.channel_groups():
                maps = _fill_maps(
                    grad_output[:, group], work.plan, work.padded
                )
                work.convolve(maps, rows[group], None, grad_input[:, group])
                grads.append(work.correlate(maps, input[:, group]))
        return grad_input, torch.cat(grads).to(input.dtype).unsqueeze(1)


class _Work:
    """What the launches for maps of one shape have in common."""

    def __init__(self, input: Tensor, grid: SharingGrid) -> None:
        self.input, self.grid = input, grid
        self.batch, channels, self.height, self.width = input.shape
        lines = self.batch * self.height
        narrow = input.element_size() < 4
        size = self.width, grid.kernel_size
        self.tiles = Tiles.forward(lines, channels, *size, narrow)
        self.grad_tiles = Tiles.weight_grad(lines, self.width, narrow)
        self.padded = self.tiles.pad(self.width)
        means = input.dtype == torch.float16
        reach = self.tiles.reach(*size)
        self.plan = make_plan(grid.sizes, self.height, reach, means)
        groups = self.tiles.group, self.grad_tiles.group
        self.tables = make_tables(
            self.plan, self.height, *groups, input.device
        )
        self.precision = 'tf32x3' if input.dtype == torch.float32 else 'ieee'
        # Numbers of 16 bytes, the widest access.
        self.phases = 16 // input.element_size()
        first, last = self.tiles.taps(*size)
        self.first_tap = (first - self.phases) // 16 * 16
        self.taps = round_up(last + 1 - self.first_tap, 16)

    def channel_groups(self) -> Iterator[slice]:
        """Slices of channels whose scratch is small enough."""
        lines = self.plan.num_maps * (self.plan.top + self.height)
        lines += self.height
        return _channel_groups(self.input, self.batch * lines * self.padded)

    def write_rows(self, weight: Tensor, flipped: bool = False) -> Tensor:
        """The kernel's k' distinct rows, ``(C, k', phases, taps)``."""
        channels, cells = len(weight), self.grid.num_cells
        rows = _scratch(weight, channels, cells, self.phases, self.taps)
        block = 1024
        blocks = -(-self.phases * self.taps // block)
        _kernels().rows_kernel[channels * cells, blocks](
            weight.contiguous(),
            rows,
            self.tables.column_cells,
            cells,
            self.grid.kernel_size,
            self.first_tap,
            self.taps,
            FLIPPED=flipped,
            PHASES=self.phases,
            BLOCK=block,
        )
        return rows

    def convolve(
        self, maps: Tensor, rows: Tensor, bias: Tensor | None, output: Tensor
    ) -> None:
        """Write the convolution of what the maps were made of."""
        channels = output.shape[1]
        planes = output
        direct = output.stride(3) == 1
        if not direct:
            shape = channels, self.batch, self.height, self.padded
            planes = _scratch(output, *shape).transpose(0, 1)
        tiles, tables = self.tiles, self.tables
        blocks = (
            -(-self.batch * self.height // tiles.lines),
            -(-self.width // tiles.columns),
        )
        _kernels().forward_kernel[(*blocks, channels)](
            maps,
            rows,
            bias,
            planes,
            tables.steps,
            tables.levels,
            self.batch,
            self.height,
            self.width,
            self.plan.top,
            maps[0, 0].numel(),
            self.grid.num_cells,
            self.grid.kernel_size,
            self.first_tap,
            self.taps,
            *planes.stride()[:3],
            planes.shape[3],
            self.padded,
            LEVELS=len(tables.levels),
            HAS_BIAS=bias is not None,
            PHASES=self.phases,
            maxnreg=128,
            # Loading ahead would bypass the first-level cache, which holds
            # most of a tile shifted by a few rows.
            num_stages=1,
            **self._constants(tiles),
        )
        if not direct:
            _interleave(planes, output, self.padded)

    def correlate(self, maps: Tensor, input: Tensor) -> Tensor:
        """``(C, k', k')`` in float32, of the maps of an output's gradient."""
        channels, cells = input.shape[1], self.grid.num_cells
        tiles, tables = self.grad_tiles, self.tables
        pairs, chunks = tiles.pairs(self.width, self.grid.kernel_size)
        groups = len(tables.counts)
        splits, split_lines = tiles.splits(
            self.batch * self.height, channels * groups * pairs
        )
        shape = splits * pairs, channels, cells, cells
        partial_sums = _scratch(input, *shape, dtype=torch.float32)
        _kernels().weight_grad_kernel[pairs, groups * splits, channels](
            maps,
            _fill_maps(input, copy_plan(), self.padded),
            partial_sums,
            tables.cells,
            tables.counts,
            tables.cell_steps,
            tables.cell_starts,
            self.batch,
            channels,
            self.height,
            self.plan.top,
            maps[0, 0].numel(),
            cells,
            self.grid.kernel_size,
            splits,
            split_lines,
            chunks,
            self.padded,
            # Three TF32 products leave no room to load ahead.
            num_stages=1 if self.precision == 'tf32x3' else 3,
            **self._constants(tiles),
        )
        return partial_sums.sum(0)

    def _constants(self, tiles: Tiles) -> dict[str, Any]:
        return dict(
            BLOCK_M=tiles.lines,
            BLOCK_X=tiles.columns,
            BLOCK_K=tiles.chunk,
            GROUP=tiles.group,
            PRECISION=self.precision,
            num_warps=tiles.warps,
        )


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    """The kernels' module; importing it imports triton."""
    from . import triton_kernels

    return triton_kernels


@lru_cache
def _why_not_on(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "it is untested on AMD's GPUs"
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    if (device.index or 0) >= torch.cuda.device_count():
        return f'there is no {device}'
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        versions = _MIN_CAPABILITY, capability
        least, has = ('.'.join(map(str, version)) for version in versions)
        why = 'its tensor-core instructions need compute capability'
        return f'{why} {least}, {device} has {has}'
    return None


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' one."""
    return (
        torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    )


def _scratch(
    like: Tensor, *shape: int, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _channel_groups(input: Tensor, scratch: int) -> Iterator[slice]:
    """Slices of channels, given the scratch elements of one channel."""
    channels = input.shape[1]
    most = _SCRATCH_BYTES // (scratch * input.element_size())
    # Whole memory sectors of a channels-last tensor, if it is more than one.
    most = most // 16 * 16 if most >= 16 else max(most, 1)
    most = min(most, channels, _MAX_CHANNELS)
    for first in range(0, channels, most):
        yield slice(first, min(first + most, channels))


def _fill_maps(input: Tensor, plan: Plan, padded: int) -> Tensor:
    """``(maps, C, N, top + H, padded)``: all boxes of the plan's ladder."""
    batch, channels, height, _ = input.shape
    lines = plan.top + height
    maps = _scratch(input, plan.num_maps, channels, batch, lines, padded)
    # A tile of 16 KiB, wide enough for whole memory sectors on both sides.
    # Without boxes its rows do not overlap the next one's: rather channels.
    size, block_w = input.element_size(), min(padded & -padded, 32)
    most = max(64 // size, 2 * plan.boxes[0])
    rows = power_of_two(lines, most)
    step = rows if rows >= lines else rows - plan.top
    block_c = (16 << 10) // (size * rows * block_w)
    blocks = batch * -(-lines // step) * (padded // block_w)
    run_c, run_w = _runs(input)
    _kernels().maps_kernel[(blocks * -(-channels // block_c),)](
        input,
        maps,
        *input.shape,
        *input.stride(),
        maps.stride(0),
        BOXES=sum(plan.boxes),
        LARGEST=plan.boxes[0],
        MEANS=plan.means,
        PADDED=padded,
        RUN_C=run_c,
        RUN_W=run_w,
        ROWS=rows,
        STEP=step,
        BLOCK_C=block_c,
        BLOCK_W=block_w,
        num_warps=8,
    )
    return maps


def _runs(tensor: Tensor) -> tuple[int, int]:
    """How many channels, and columns, one access of up to 16 bytes takes.

    They are adjacent in memory and every run of so many is aligned, as is
    the end of the dimension. One of the two numbers is 1.
    """
    strides, size = list(tensor.stride()), tensor.element_size()
    if 1 not in (strides[1], strides[3]):
        return 1, 1
    fastest = 1 if strides[1] == 1 else 3
    del strides[fastest]
    start = tensor.data_ptr() // size
    run = gcd(16 // size, start, tensor.shape[fastest], *strides)
    return (run, 1) if fastest == 1 else (1, run)


def _interleave(planes: Tensor, target: Tensor, padded: int) -> None:
    """Copy ``planes``, ``(N, C, H, padded)``, into the output."""
    batch, channels, height, _ = target.shape
    block_w = min(padded & -padded, 64)
    block_c = 2048 // block_w
    blocks = -(-channels // block_c) * (padded // block_w)
    run_c, run_w = _runs(target)
    _kernels().interleave_kernel[batch * height, blocks](
        planes,
        target,
        *target.shape,
        *target.stride(),
        PADDED=padded,
        RUN_C=run_c,
        RUN_W=run_w,
        BLOCK_C=block_c,
        BLOCK_W=block_w,
        num_warps=4,
    )
