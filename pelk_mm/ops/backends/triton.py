"""Toeplitz products of row-box sums on the tensor cores, in Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend
from .triton_plan import Plan, Tiles, copy_plan, make_plan, make_tables

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

    Work per output: k' products with a tile of 64 columns (two for the cells
    of more than one row), instead of K^2 multiply-adds. float32 runs as three
    TF32 products, with an error near float32's own; the narrower dtypes in
    their own format, accumulated in float32. Results repeat bit by bit.
    Around a non-finite input more outputs turn non-finite than the kernel
    reaches.

    Scratch: the input once in planar order, rows padded to a multiple of 16
    to 64, and for some box sizes of rows once more (twice in the narrow
    dtypes): for PeLK's kernels 1 to 7 planes of the input's size in all, 3
    for stage 1 of PeLK-T at 224 x 224 in bfloat16. One more plane holds a
    channels-last output, or the output's gradient. Channels are taken in
    groups to keep this below 128 MiB. The weight's gradient has at most some
    thousand partial sums for each of its k' columns, or one per tile of the
    map if those are more. The weight is expanded to ``(C, k', K)``, never to
    K x K.
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
            target = torch.empty_like(pixel)[..., :1]
            _interleave(pixel, target, Tiles(16, 16, 16, 16, 4))

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        batch, channels, height, width = input.shape
        output = torch.empty_like(input, memory_format=layout)
        direct = output.is_contiguous()
        narrow = input.element_size() < 4
        tiles = Tiles.forward(batch * height, channels, width, narrow)
        reach = tiles.reach(width, grid.kernel_size)
        plan = make_plan(grid.sizes, height, reach, narrow)
        tables = make_tables(plan, input.device)
        # The kernel's k' distinct rows, written out along the columns.
        rows = weight.squeeze(1).index_select(2, tables.column_cells)
        lines = plan.num_maps * (plan.top + height)
        if not direct:
            lines += height
        kernel = grid.num_cells, grid.kernel_size
        blocks = -(-batch * height // tiles.lines), -(-width // tiles.columns)
        with _on(input.device):
            for group in _channel_groups(input, batch * lines * tiles.padded):
                maps = _fill_maps(input[:, group], plan, tiles)
                target = planes = output[:, group]
                count = target.shape[1]
                if not direct:
                    shape = count, batch, height, tiles.padded
                    planes = _scratch(input, *shape).transpose(0, 1)
                sizes = batch, height, width, plan.top, maps.stride(0), *kernel
                _kernels().forward_kernel[(*blocks, count)](
                    maps,
                    rows[group],
                    None if bias is None else bias[group],
                    planes,
                    tables.ladder,
                    tables.cells,
                    tables.level_ends,
                    *sizes,
                    *planes.stride()[:3],
                    planes.shape[3],
                    HAS_BIAS=bias is not None,
                    maxnreg=128,
                    # Loading ahead would bypass the first-level cache,
                    # which holds most of a tile shifted by a few rows.
                    num_stages=1,
                    **_constants(input, plan, tiles),
                )
                if not direct:
                    _interleave(planes, target, tiles)
        return output

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        batch, _, height, width = input.shape
        cells = grid.num_cells
        narrow = input.element_size() < 4
        tiles = Tiles.weight_grad(batch * height, width, narrow)
        reach = tiles.reach(width, grid.kernel_size)
        plan = make_plan(grid.sizes, height, reach, narrow)
        tables = make_tables(plan, input.device)
        pairs, chunks = tiles.pairs(width, grid.kernel_size)
        lines = plan.num_maps * (plan.top + height) + height
        grads = []
        with _on(input.device):
            for group in _channel_groups(input, batch * lines * tiles.padded):
                maps = _fill_maps(input[:, group], plan, tiles)
                grad_group = grad_output[:, group]
                count = maps.shape[1]
                programs = count * cells * pairs
                splits, split_lines = tiles.splits(batch * height, programs)
                sizes = batch, count, height, width, plan.top, maps.stride(0)
                shape = splits * pairs, count, cells, cells
                partial_sums = _scratch(input, *shape, dtype=torch.float32)
                _kernels().weight_grad_kernel[pairs, cells * splits, count](
                    maps,
                    _fill_maps(grad_group, copy_plan(), tiles),
                    partial_sums,
                    tables.ladder,
                    tables.boxes_of,
                    tables.cell_starts,
                    *sizes,
                    cells,
                    grid.kernel_size,
                    splits,
                    split_lines,
                    chunks,
                    num_stages=3,
                    **_constants(input, plan, tiles),
                )
                grads.append(partial_sums.sum(0))
        return torch.cat(grads).to(input.dtype).unsqueeze(1)


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


def _constants(input: Tensor, plan: Plan, tiles: Tiles) -> dict[str, Any]:
    return dict(
        PADDED=tiles.padded,
        LEVELS=len(plan.boxes),
        BLOCK_M=tiles.lines,
        BLOCK_X=tiles.columns,
        BLOCK_K=tiles.chunk,
        PRECISION='tf32x3' if input.dtype == torch.float32 else 'ieee',
        num_warps=tiles.warps,
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


def _fill_maps(input: Tensor, plan: Plan, tiles: Tiles) -> Tensor:
    """``(maps, C, N, top + H, padded)``: all boxes of the plan's ladder."""
    batch, channels, height, _ = input.shape
    lines = plan.top + height
    maps = _scratch(input, plan.num_maps, channels, batch, lines, tiles.padded)
    _turn(_kernels().maps_kernel, batch * lines, channels, tiles)(
        input,
        maps,
        *input.shape,
        *input.stride(),
        maps.stride(0),
        BOXES=sum(plan.boxes),
        LARGEST=plan.boxes[0],
        SPLIT=plan.narrow,
    )
    return maps


def _interleave(planes: Tensor, target: Tensor, tiles: Tiles) -> None:
    """Copy ``planes``, ``(N, C, H, padded)``, into the output."""
    batch, channels, height, _ = target.shape
    kernel = _kernels().interleave_kernel
    launch = _turn(kernel, batch * height, channels, tiles)
    launch(planes, target, *target.shape, *target.stride())


def _turn(kernel: Any, lines: int, channels: int, tiles: Tiles) -> Callable:
    """The launch of a kernel that turns lines from one layout to another."""
    block_c = 2048 // tiles.chunk
    blocks = -(-channels // block_c) * (tiles.padded // tiles.chunk)
    return partial(
        kernel[lines, blocks],
        PADDED=tiles.padded,
        BLOCK_C=block_c,
        BLOCK_W=tiles.chunk,
        num_warps=4,
    )
