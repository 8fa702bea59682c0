"""Toeplitz products of row-box sums on the tensor cores, in Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend, BackendError, memory_format
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

    def __init__(self) -> None:
        self._ready = False
        self._failure: str | None = None

    def can_run(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[bool, str]:
        if dtype not in _DTYPES:
            return False, (
                f'it has no kernel for {dtype}, only for '
                f'{", ".join(map(str, _DTYPES))}'
            )
        kernels, reason = _kernels()
        if kernels is None:
            return False, reason
        if kernels.INTERPRETED:
            return True, ''
        if device.type != 'cuda':
            return False, (
                "it needs an NVIDIA GPU; elsewhere only Triton's interpreter "
                'runs it, for tests: set TRITON_INTERPRET=1 before anything '
                'imports triton'
            )
        if self._failure is not None:
            return False, self._failure
        return _runs_on(device)

    def prepare(self) -> None:
        """Compile, load and run the smallest kernel once.

        Triton needs a C compiler and a cache it can write, and says so only
        when it launches.
        """
        kernels, _ = _kernels()
        if self._ready or kernels is None or kernels.INTERPRETED:
            return
        if self._failure is not None:
            raise BackendError(self._failure)
        try:
            pixel = torch.zeros(1, 1, 1, 16, device='cuda')
            _interleave(
                pixel,
                torch.empty_like(pixel)[..., :1],
                Tiles(16, 16, 16, 16, 4),
            )
        # Compilers, drivers and file systems fail in many ways, none of which
        # should stop a training that has other backends.
        except Exception as error:
            lines = str(error).strip().splitlines() or ['no message']
            self._failure = (
                "backend 'triton' could not launch a kernel: "
                f'{type(error).__name__}: {lines[0]}'
            )
            raise BackendError(self._failure) from error
        self._ready = True

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
    ) -> Tensor:
        batch, channels, height, width = input.shape
        output = torch.empty_like(input, memory_format=memory_format(input))
        direct = output.is_contiguous()
        if not batch:
            return output
        kernels, _ = _kernels()
        narrow = input.element_size() < 4
        tiles = Tiles.forward(batch * height, channels, width, narrow)
        plan = make_plan(
            grid.sizes, height, tiles.reach(width, grid.kernel_size), narrow
        )
        tables = make_tables(plan, input.device)
        # The kernel's k' distinct rows, written out along the columns.
        rows = weight.squeeze(1).index_select(2, tables.column_cells)
        scratch_lines = plan.num_maps * (plan.top + height)
        if not direct:
            scratch_lines += height
        with _on(input.device):
            for group in _channel_groups(
                input, batch * scratch_lines * tiles.padded
            ):
                maps = _fill_maps(input[:, group], plan, tiles)
                target = output[:, group]
                planes = (
                    target
                    if direct
                    else _scratch(
                        input, target.shape[1], batch, height, tiles.padded
                    ).transpose(0, 1)
                )
                kernels.forward_kernel[
                    (
                        -(-batch * height // tiles.lines),
                        -(-width // tiles.columns),
                        target.shape[1],
                    )
                ](
                    maps,
                    rows[group],
                    None if bias is None else bias[group],
                    planes,
                    tables.ladder,
                    tables.cells,
                    tables.level_ends,
                    batch,
                    height,
                    width,
                    plan.top,
                    maps.stride(0),
                    grid.num_cells,
                    grid.kernel_size,
                    *planes.stride()[:3],
                    planes.shape[3],
                    PADDED=tiles.padded,
                    LEVELS=len(plan.boxes),
                    HAS_BIAS=bias is not None,
                    BLOCK_M=tiles.lines,
                    BLOCK_X=tiles.columns,
                    BLOCK_K=tiles.chunk,
                    PRECISION=_precision(input),
                    num_warps=tiles.warps,
                    maxnreg=128,
                    # Loading ahead would bypass the first-level cache,
                    # which holds most of a tile shifted by a few rows.
                    num_stages=1,
                )
                if not direct:
                    _interleave(planes, target, tiles)
        return output

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        batch, channels, height, width = input.shape
        cells = grid.num_cells
        if not batch:
            return input.new_zeros(channels, 1, cells, cells)
        kernels, _ = _kernels()
        narrow = input.element_size() < 4
        tiles = Tiles.weight_grad(batch * height, width, narrow)
        plan = make_plan(
            grid.sizes, height, tiles.reach(width, grid.kernel_size), narrow
        )
        tables = make_tables(plan, input.device)
        pairs, chunks = tiles.pairs(width, grid.kernel_size)
        scratch_lines = plan.num_maps * (plan.top + height) + height
        grads = []
        with _on(input.device):
            for group in _channel_groups(
                input, batch * scratch_lines * tiles.padded
            ):
                maps = _fill_maps(input[:, group], plan, tiles)
                grad_maps = _fill_maps(
                    grad_output[:, group], copy_plan(), tiles
                )
                count = maps.shape[1]
                splits, split_lines = tiles.splits(
                    batch * height, count * cells * pairs
                )
                partial = _scratch(
                    input,
                    splits * pairs,
                    count,
                    cells,
                    cells,
                    dtype=torch.float32,
                )
                kernels.weight_grad_kernel[(pairs, cells * splits, count)](
                    maps,
                    grad_maps,
                    partial,
                    tables.ladder,
                    tables.boxes_of,
                    tables.cell_starts,
                    batch,
                    count,
                    height,
                    width,
                    plan.top,
                    maps.stride(0),
                    cells,
                    grid.kernel_size,
                    splits,
                    split_lines,
                    chunks,
                    PADDED=tiles.padded,
                    LEVELS=len(plan.boxes),
                    BLOCK_M=tiles.lines,
                    BLOCK_X=tiles.columns,
                    BLOCK_K=tiles.chunk,
                    PRECISION=_precision(input),
                    num_warps=tiles.warps,
                    num_stages=3,
                )
                grads.append(partial.sum(0))
        return torch.cat(grads).to(input.dtype).unsqueeze(1)


@lru_cache(maxsize=1)
def _kernels() -> tuple[ModuleType | None, str]:
    """The kernels' module, or None and why it cannot be imported."""
    try:
        from . import triton_kernels
    except Exception as error:
        # A broken installation raises more than ImportError.
        return None, f'importing triton failed: {error!r}'
    return triton_kernels, ''


@lru_cache
def _runs_on(device: torch.device) -> tuple[bool, str]:
    if torch.version.hip is not None:
        return False, "it is untested on AMD's GPUs"
    if not torch.cuda.is_available():
        return False, 'torch sees no CUDA device'
    if (device.index or 0) >= torch.cuda.device_count():
        return False, f'there is no {device}'
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return False, (
            'its tensor-core instructions need compute capability '
            f'{".".join(map(str, _MIN_CAPABILITY))}, {device} has '
            f'{".".join(map(str, capability))}'
        )
    return True, ''


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' one."""
    return (
        torch.cuda.device(device) if device.type == 'cuda' else (nullcontext())
    )


def _precision(input: Tensor) -> str:
    return 'tf32x3' if input.dtype == torch.float32 else 'ieee'


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
    kernels, _ = _kernels()
    batch, channels, height, width = input.shape
    lines = plan.top + height
    maps = _scratch(input, plan.num_maps, channels, batch, lines, tiles.padded)
    block_c = _channel_block(tiles)
    kernels.maps_kernel[
        (
            batch * lines,
            -(-channels // block_c) * (tiles.padded // tiles.chunk),
        )
    ](
        input,
        maps,
        batch,
        channels,
        height,
        width,
        *input.stride(),
        maps.stride(0),
        BOXES=sum(plan.boxes),
        LARGEST=plan.boxes[0],
        SPLIT=plan.narrow,
        PADDED=tiles.padded,
        BLOCK_C=block_c,
        BLOCK_W=tiles.chunk,
        num_warps=4,
    )
    return maps


def _interleave(planes: Tensor, target: Tensor, tiles: Tiles) -> None:
    """Copy ``planes``, ``(N, C, H, padded)``, into the output."""
    kernels, _ = _kernels()
    batch, channels, height, width = target.shape
    block_c = _channel_block(tiles)
    kernels.interleave_kernel[
        (
            batch * height,
            -(-channels // block_c) * (tiles.padded // tiles.chunk),
        )
    ](
        planes,
        target,
        batch,
        channels,
        height,
        width,
        *target.stride(),
        PADDED=tiles.padded,
        BLOCK_C=block_c,
        BLOCK_W=tiles.chunk,
        num_warps=4,
    )


def _channel_block(tiles: Tiles) -> int:
    """Channels of a tile that is turned from one layout to the other."""
    return 2048 // tiles.chunk
