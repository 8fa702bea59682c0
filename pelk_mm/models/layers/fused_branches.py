"""A training step of a partial peripheral convolution in few launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ...ops.autocast import autocast_dtype
from ...ops.backends import memory_format, triton_branches
from .peripheral_conv import PeripheralConv2d, SmallConv2d
from .replacing import are_ordinary, are_plain, is_eager_gpu, is_for_triton

if TYPE_CHECKING:
    from .partial_conv import PartialPeripheralConv2d


def fuse_branches(
    layer: PartialPeripheralConv2d, x: Tensor, pos_sums: Tensor | None
) -> Tensor | None:
    """Compute what the layer's parts would, if that can be done in one go.

    Launched one by one, both convolutions, their BatchNorms, the sum and the
    joining with the other channels take the host longer than the GPU. So does
    the backward pass. Where something is attached to a part, or stands in its
    place, or torch records what runs, the parts have to be called.

    Args:
        layer (PartialPeripheralConv2d): Any.
        x (Tensor): ``(N, C, H, W)``.
        pos_sums (Tensor, optional): ``(1, k', k')``.

    Returns:
        Tensor: ``(N, C, H, W)``, or None where the parts have to be called.
    """
    if not is_eager_gpu(x) or layer.merged:
        return None
    parts = layer.large, layer.small, layer.large_norm, layer.small_norm
    if not _are_known(parts):
        return None
    large, small, *norms = cast(Any, parts)
    dtype = _dtype(x)
    # By name: listing all members takes the host as long as some launches.
    tensors = [x, large.weight, small.weight]
    for norm in norms:
        tensors += [norm.weight, norm.bias, norm.running_mean]
        tensors += [norm.running_var, norm.num_batches_tracked]
    if pos_sums is not None:
        tensors.append(pos_sums)
    if not (
        memory_format(x[:, : layer.split[0]]) == torch.channels_last
        and x.numel() > x.shape[1]  # else there is no variance
        and are_ordinary(tensors)
        and all(tensor.device == x.device for tensor in tensors)
        and _dtype(large.weight) == _dtype(small.weight) == dtype
        and is_for_triton(large, x, dtype)
    ):
        return None
    # What adding up and joining the parts would promote them to.
    out_dtype = dtype
    if layer.split[1]:
        out_dtype = torch.promote_types(out_dtype, x.dtype)
    if pos_sums is not None:
        out_dtype = torch.promote_types(out_dtype, large.weight.dtype)
    return triton_branches.join_branches(
        x,
        large.weight,
        small.weight,
        norms,
        pos_sums,
        large.grid,
        small.grid,
        dtype,
        out_dtype,
    )


def _are_known(parts: tuple[Any, ...]) -> bool:
    """Two convolutions, and norms that take the batch's statistics."""
    large, small, *norms = parts
    return (
        type(large) is PeripheralConv2d
        and type(small) is SmallConv2d
        and large.bias is small.bias is None
        and are_plain(parts)
        and all(
            # That of mmengine, which stands for a SyncBN in one process, too.
            type(norm).forward is _BatchNorm.forward
            and norm.training
            and norm.affine
            and norm.track_running_stats
            and norm.momentum is not None
            for norm in norms
        )
    )


def _dtype(operand: Tensor) -> torch.dtype:
    return autocast_dtype(operand) or operand.dtype
