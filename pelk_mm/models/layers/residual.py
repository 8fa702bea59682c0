"""Adding the branch of a residual block."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from ...ops.backends import triton_residual
from .drop_path import DropPath
from .replacing import are_ordinary, are_plain, is_eager_gpu, is_for_triton


def add_residual_branch(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    drop_path: nn.Module,
    conv: nn.Module,
) -> Tensor:
    """``x + drop_path(scale * y)``.

    On a GPU by a few launches, forward and backward, where the block's large
    convolution runs on Triton. Where something is attached to the stochastic
    depth, or stands in its place, or torch records what runs, it is called.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        y (Tensor): ``(N, H, W, C')``, C' at least C; what is behind the first
            C channels is left out.
        scale (Tensor, optional): LayerScale, ``(C,)``.
        drop_path (nn.Module): Stochastic depth.
        conv (nn.Module): The large convolution.

    Returns:
        Tensor: ``(N, C, H, W)``.
    """
    fused = _fused(x, y, scale, drop_path, conv)
    if fused is not None:
        return fused
    if y.shape[3] != x.shape[1]:
        y = y[..., : x.shape[1]]
    if scale is None:
        y = drop_path(y)
    else:
        if drop_path.training:
            # Of a scale a sample, which is quicker than of its maps.
            scale = drop_path(scale.expand(y.shape[0], 1, 1, -1))
        y = y * scale
    return x + y.permute(0, 3, 1, 2)


def _fused(
    x: Tensor,
    y: Tensor,
    scale: Tensor | None,
    drop_path: nn.Module,
    conv: nn.Module,
) -> Tensor | None:
    """The same in few launches; None where that cannot be done."""
    if not is_eager_gpu(x):
        return None
    tensors = [x, y] if scale is None else [x, y, scale]
    dtype = reduce(torch.promote_types, (value.dtype for value in tensors))
    if not (
        type(drop_path) is DropPath
        and are_plain([drop_path])
        and are_ordinary(tensors)
        and all(value.device == x.device for value in tensors)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and y.is_contiguous()
        and (scale is None or scale.is_contiguous())
        and is_for_triton(conv, x, dtype)
    ):
        return None
    drawn = drop_path.draw(x)
    kept = 1.0 if drawn is None else 1 - drop_path.drop_prob
    return triton_residual.add_scaled(x, y, scale, drawn, kept, dtype)
