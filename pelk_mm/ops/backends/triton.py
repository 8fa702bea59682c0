"""Toeplitz products of row-box sums on the tensor cores, in Triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend
from .triton_launch import View, interleave_launch, kernels, make_work

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Ampere: the oldest generation whose tensor cores know bfloat16 and TF32.
_MIN_CAPABILITY = (8, 0)
_HERE = nullcontext()


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
    groups to keep this below 256 MiB. The weight's gradient has at most some
    thousand partial sums for each of its k' columns, or one per tile of the
    map if those are more. The weight is expanded to k' rows, each padded and
    as often as 16 bytes have numbers, never to K x K.
    """

    name = 'triton'

    @cached_property
    def _interpreted(self) -> bool | None:
        """Whether Triton's interpreter runs the kernels; None without it."""
        try:
            return kernels().INTERPRETED
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
            interleave_launch(View.of(target), 16)(pixel, target)

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        output = torch.empty_like(input, memory_format=layout)
        with on_device(input.device):
            work = make_work(View.of(input), grid, layout, bias is not None)
            rows = work.write_rows(weight)
            for group in work.groups:
                group.convolve(group.fill(input), rows, bias, output)
        return output

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        options = grid, torch.contiguous_format, False
        with on_device(input.device):
            work = make_work(View.of(grad_output), *options)
            copies = make_work(View.of(input), *options)
            grads = [
                group.correlate(group.fill(grad_output), copy.copy(input))
                for group, copy in zip(work.groups, copies.groups, strict=True)
            ]
        return join_groups(grads).to(input.dtype)

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        grad_input = torch.empty_like(input, memory_format=layout)
        grads = []
        with on_device(input.device):
            work = make_work(View.of(grad_output), grid, layout, False)
            copies = make_work(View.of(input), grid, layout, False)
            rows = work.write_rows(weight, flipped=True)
            for group, copy in zip(work.groups, copies.groups, strict=True):
                maps = group.fill(grad_output)
                group.convolve(maps, rows, None, grad_input)
                grads.append(group.correlate(maps, copy.copy(input)))
        return grad_input, join_groups(grads).to(input.dtype)


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


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device: make it the tensors' one."""
    if device.type != 'cuda' or device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(device)


def join_groups(groups: list[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.cat(groups)
