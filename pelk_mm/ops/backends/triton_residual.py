"""A residual branch, scaled and with stochastic depth, added in one launch.

Two more give the gradients. By operators of torch they are some fifteen, each
with a pass over the map.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .triton import on_device
from .triton_launch import Launch

# About so many programs share the rows of the gradients.
_PROGRAMS = 1024
_BLOCK_R, _BLOCK_C = 16, 128


def add_scaled(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    drawn: Tensor | None,
    probability: float,
    dtype: torch.dtype,
) -> Tensor:
    """``x + kept * scale * y``.

    Args:
        x (Tensor): ``(N, C, H, W)`` on a GPU, channels-last.
        y (Tensor): ``(N, H, W, C')``, contiguous, C' at least C. What is
            behind the first C channels is not read; its gradient is 0.
        scale (Tensor, optional): ``(C,)``, contiguous.
        drawn (Tensor, optional): ``(N,)`` float32, uniform in [0, 1). Samples
            from ``probability`` on are dropped, the others divided by it.
            None drops none.
        probability (float): Above 0. 1 without ``drawn``.
        dtype (torch.dtype): Of the result.

    Returns:
        Tensor: ``(N, C, H, W)``, channels-last.
    """
    batch, channels, height, width = x.shape
    if drawn is None:  # of the dtype that kernels are compiled for
        drawn = x.new_empty(0, dtype=torch.float32)
    kind = _Kind(
        batch * height * width,
        height * width,
        channels,
        y.shape[3],
        probability,
        x.dtype,
        y.dtype,
        None if scale is None else scale.dtype,
        dtype,
        x.device,
    )
    return _AddScaled.apply(kind, x, y, scale, drawn)


class _Kind(NamedTuple):
    """What the launches depend on."""

    rows: int  # N * H * W
    pixels: int  # of an image
    channels: int
    width: int  # channels of y
    probability: float
    input_dtype: torch.dtype
    branch_dtype: torch.dtype
    scale_dtype: torch.dtype | None
    dtype: torch.dtype
    device: torch.device

    def constants(self) -> dict[str, Any]:
        has_scale = self.scale_dtype is not None
        return dict(HAS_SCALE=has_scale, BLOCK_R=_BLOCK_R, BLOCK_C=_BLOCK_C)


class _AddScaled(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: _Kind,
        x: Tensor,
        y: Tensor,
        scale: Tensor | None,
        drawn: Tensor,
    ) -> Tensor:
        output = torch.empty_like(
            x, dtype=kind.dtype, memory_format=torch.channels_last
        )
        with on_device(x.device):
            _launch(kind)(x, y, scale, drawn, output)
        ctx.save_for_backward(y, scale, drawn)
        ctx.kind = kind
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        kind = ctx.kind
        if torch.is_grad_enabled():
            of_y, of_scale = _gradients_again(kind, grad, *ctx.saved_tensors)
        else:
            of_y, of_scale = _gradients(kind, grad, *ctx.saved_tensors)
        return None, grad.to(kind.input_dtype), of_y, of_scale, None


def _gradients(
    kind: _Kind, grad: Tensor, y: Tensor, scale: Tensor | None, drawn: Tensor
) -> tuple[Tensor, Tensor | None]:
    grad = grad.contiguous(memory_format=torch.channels_last)
    launch, splits = _grad_launch(kind)
    of_y = torch.empty_like(y)
    partial = y.new_empty((splits, kind.channels), dtype=torch.float32)
    with on_device(grad.device):
        launch(grad, y, scale, drawn, of_y, partial)
    if scale is None:
        return of_y, None
    return of_y, partial.sum(0).to(scale.dtype)


def _gradients_again(
    kind: _Kind, grad: Tensor, y: Tensor, scale: Tensor | None, drawn: Tensor
) -> tuple[Tensor, Tensor | None]:
    """By operators that torch differentiates once more."""
    grad, of_scale = grad.permute(0, 2, 3, 1), None
    if len(drawn):
        kept = (drawn < kind.probability) / kind.probability
        grad = grad * kept[:, None, None, None]
    if scale is not None:
        sums = (grad * y[..., : kind.channels]).sum((0, 1, 2))
        grad, of_scale = grad * scale, sums.to(scale.dtype)
    of_y = F.pad(grad, (0, kind.width - kind.channels))
    return of_y.to(y.dtype), of_scale


@lru_cache(maxsize=4096)
def _launch(kind: _Kind) -> Launch:
    """For ``residual_kernel``."""
    grid = -(-kind.rows // _BLOCK_R), -(-kind.channels // _BLOCK_C)
    return Launch('residual_kernel', grid, *kind[:5], **kind.constants())


@lru_cache(maxsize=4096)
def _grad_launch(kind: _Kind) -> tuple[Launch, int]:
    """For ``residual_grad_kernel``, and into how many splits."""
    rows, pixels, channels, width, probability = kind[:5]
    tiles, blocks = -(-width // _BLOCK_C), -(-rows // _BLOCK_R)
    split_blocks = -(-blocks // max(_PROGRAMS // tiles, 1))
    splits = -(-blocks // split_blocks)
    launch = Launch(
        'residual_grad_kernel',
        (splits, tiles),
        rows,
        pixels,
        channels,
        width,
        split_blocks * _BLOCK_R,
        probability,
        **kind.constants(),
    )
    return launch, splits
