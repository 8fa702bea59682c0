"""The large kernel and its parallel small one, of the first channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...ops import SharingGrid
from ...ops.autocast import autocast_dtype
from ...ops.checks import check_bool, check_integer, check_number
from ..openmmlab import build_norm_layer
from .derived import make_permanent
from .fused_branches import fuse_branches
from .peripheral_conv import PeripheralConv2d, SmallConv2d


class PartialPeripheralConv2d(nn.Module):
    """Peripheral convolution of the first channels, the rest passed on.

    The first ``g = int(conv_ratio * channels)`` channels go through the large
    kernel, and in training through a parallel small one; each branch has its
    own BatchNorm and the two are summed (Eq. 4 to 6 of `PeLK
    <https://arxiv.org/abs/2403.07589>`_). The others are passed on unchanged.

    The kernel-wise positional embedding ``h`` of Eq. 3 contributes
    ``sum_{i,j} w(i, j) h(i, j)``, one constant per channel whatever the data.
    A BatchNorm behind it would cancel it and leave ``h`` without a gradient,
    so it is added behind the summed branches. ``w`` is constant on a cell, so
    all that is needed of ``h`` are its sums over the cells, which the blocks
    of a stage share: ``grid.reduce(h)``.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the large kernel.
        conv_ratio (float): Share of the channels that are convolved.
            Default: 0.375.
        small_kernel (int, optional): Size of the parallel kernel, odd. None
            leaves out the branch and both norms, and gives the large kernel
            a bias. Default: 5.
        norm_cfg (dict, optional): Config of the branches' norms, a BatchNorm
            of any kind. Default: None, ``dict(type='BN')``.
        deploy (bool): Build the layer merged. Default: False.
        backend (str, optional): See :class:`PeripheralConv2d`. Default: None.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If no channel would be convolved, ``small_kernel`` is even
            or larger than the large kernel, ``norm_cfg`` is no BatchNorm, or
            there is no such backend.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        conv_ratio: float = 0.375,
        small_kernel: int | None = 5,
        norm_cfg: dict | None = None,
        deploy: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        share = check_number('conv_ratio', conv_ratio, 0, 1)
        convolved = int(share * channels)
        if not 1 <= convolved <= channels:
            raise ValueError(
                f'conv_ratio={conv_ratio} of {channels} channels leaves '
                f'{convolved} to convolve, expected 1 to {channels}'
            )
        if small_kernel is not None and (
            check_integer('small_kernel', small_kernel, 1) % 2 == 0
            or small_kernel > grid.kernel_size
        ):
            raise ValueError(
                'small_kernel must be None or odd and no larger than the '
                f'large kernel ({grid.kernel_size}), got {small_kernel}'
            )
        self.split = (convolved, channels - convolved)
        self.merged = small_kernel is None or deploy

        def build_norm() -> nn.Module:
            if self.merged:
                return nn.Identity()
            return _build_batch_norm(norm_cfg, convolved)

        # Each norm stands right behind its convolution, where whoever fuses
        # the two, such as mmcv.cnn.fuse_conv_bn, looks for it.
        self.large = PeripheralConv2d(
            convolved, grid, bias=self.merged, backend=backend
        )
        self.large_norm = build_norm()
        self.small: SmallConv2d | None = None
        # Merged, it is left only where the large one cannot take it in.
        if small_kernel and not (deploy and _fits(small_kernel, grid)):
            self.small = SmallConv2d(convolved, small_kernel, backend)
            nn.init.trunc_normal_(self.small.weight, std=0.02)
        self.small_norm = build_norm()

    def forward(self, x: Tensor, pos_sums: Tensor | None = None) -> Tensor:
        """Convolve the first channels.

        Args:
            x (Tensor): ``(N, C, H, W)``.
            pos_sums (Tensor, optional): Sums of ``h`` of Eq. 3 over the
                cells, ``(1, k', k')``. Default: None.

        Returns:
            Tensor: ``(N, C, H, W)``.
        """
        fused = fuse_branches(self, x, pos_sums)
        if fused is not None:
            return fused
        head, tail = x.split(self.split, 1)
        # Once for both branches, which each would keep a copy otherwise.
        dtype = autocast_dtype(head)
        if dtype is not None:
            head = head.to(dtype)
        y = self.large_norm(self.large(head))
        if self.small is not None:
            y = y + self.small_norm(self.small(head))
        if pos_sums is not None:
            # Under autocast this makes it float32, as the others are, which
            # joining would do with one more copy.
            y = y + self._constant(pos_sums)[:, None, None]
        # Joined with nothing, it would be copied.
        return torch.cat((y, tail), 1) if self.split[1] else y

    def _constant(self, pos_sums: Tensor) -> Tensor:
        """``sum_{i,j} w(i, j) h(i, j)`` per channel, ``(g,)``."""
        return (self.large.weight * pos_sums).sum((1, 2, 3))

    @torch.no_grad()
    def merge(self, pos_sums: Tensor | None = None) -> None:
        """Fold norms, small kernel and positional embedding into one kernel.

        The result stays compact. A small kernel that reaches beyond the
        unshared centre cannot be written into shared cells and stays a
        convolution of its own, its norm folded.

        Args:
            pos_sums (Tensor, optional): Sums of ``h`` of Eq. 3 over the
                cells, ``(1, k', k')``. Default: None.

        Raises:
            TypeError: If a convolution or a norm was exchanged for something
                that cannot be merged.
        """
        large, small = self.large, self.small
        weight, bias = _fold(large, self.large_norm)
        if pos_sums is not None:
            bias = bias + self._constant(pos_sums)
        if small is not None:
            small_weight, small_bias = _fold(small, self.small_norm)
            bias = bias + small_bias
            size = small.kernel_size[0]
            if _fits(size, large.grid):
                pad = (large.grid.num_cells - size) // 2
                weight = weight + F.pad(small_weight, [pad] * 4)
                self.small = None
            else:
                small.weight.copy_(small_weight)
                small.bias = None
        self.large_norm, self.small_norm = nn.Identity(), nn.Identity()
        trained = large.weight.requires_grad
        large.bias = nn.Parameter(bias.to(large.weight.dtype), trained)
        large.weight.copy_(weight)
        self.merged = True


def _fits(small_kernel: int, grid: SharingGrid) -> bool:
    """Whether the small kernel lies in the unshared centre."""
    return small_kernel <= 2 * grid.unshared_radius + 1


def _build_batch_norm(cfg: dict | None, channels: int) -> _BatchNorm:
    if cfg is None:
        cfg = dict(type='BN')
    if not isinstance(cfg, Mapping):
        kind = type(cfg).__name__
        raise TypeError(
            f'norm_cfg must be None or a dict, got {cfg!r} of type {kind}'
        )
    try:
        norm = build_norm_layer(dict(cfg), channels)[1]
    except Exception as error:
        # Of mmcv's registry or of the norm itself; neither names the field.
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(
            f'norm_cfg={dict(cfg)} builds no norm: {reason}'
        ) from error
    if not (isinstance(norm, _BatchNorm) and norm.track_running_stats):
        raise ValueError(
            'norm_cfg must be a BatchNorm with running statistics, such as '
            f"dict(type='BN') or dict(type='SyncBN'), got {dict(cfg)}: no "
            'other norm can be merged into a convolution'
        )
    # torch takes anything for these and fails at the first batch.
    if check_number('norm_cfg.eps', norm.eps, 0) == 0:
        raise ValueError(
            'norm_cfg.eps must be above 0, got 0: a channel without variance '
            'would be divided by it'
        )
    if norm.momentum is not None:
        check_number('norm_cfg.momentum', norm.momentum, 0, 1)
    check_bool('norm_cfg.affine', norm.affine)
    return norm


def _fold(
    conv: PeripheralConv2d | SmallConv2d, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """A convolution and its norm in eval mode as one, in float64.

    Returns:
        tuple[Tensor, Tensor]: Weight ``(C, 1, k, k)`` and bias ``(C,)``.
    """
    if not isinstance(conv, (PeripheralConv2d, nn.Conv2d)):
        raise TypeError(
            'a peripheral or an ordinary convolution can be merged, got '
            f'{type(conv).__name__}: put the convolution back in its place'
        )
    for module in (conv, norm):
        make_permanent(module, 'weight', 'bias')
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight))
    if conv.bias is not None:
        bias = bias + conv.bias
    if isinstance(norm, _BatchNorm) and norm.running_var is not None:
        gamma, beta = (norm.weight, norm.bias) if norm.affine else (1.0, 0.0)
        variance = norm.get_buffer('running_var').double()
        scale = gamma * torch.rsqrt(variance + norm.eps)
        weight = weight * scale[:, None, None, None]
        bias = (bias - norm.get_buffer('running_mean')) * scale + beta
    elif not isinstance(norm, nn.Identity):
        raise TypeError(
            'a BatchNorm with running statistics can be merged into a '
            f'convolution, got {type(norm).__name__}'
        )
    return weight, bias
