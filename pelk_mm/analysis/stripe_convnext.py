"""ConvNeXt with stripes for kernels, to compare receptive fields with."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS
from mmpretrain.models.backbones import ConvNeXt
from torch import Tensor, nn


class StripeConv2d(nn.Module):
    """K×5 and 5×K depthwise convolutions side by side, and a 5×5 one.

    `SLaK <https://arxiv.org/abs/2207.03620>`_ takes a large kernel apart like
    this; each branch ends in a BatchNorm.

    Args:
        channels (int): Of input and output.
        length (int): K, odd; up to 5 a single 5×5 branch is left.
        width (int): Of the stripes, odd. Default: 5.
    """

    def __init__(self, channels: int, length: int, width: int = 5) -> None:
        super().__init__()
        shapes = {(length, width), (width, length), (width, width)}
        self.branches = nn.ModuleList()
        options = dict(groups=channels, bias=False)
        for shape in sorted(shapes, reverse=True):
            padding = tuple(side // 2 for side in shape)
            conv = nn.Conv2d(channels, channels, shape, 1, padding, **options)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H, W)``."""
        return sum(branch(x) for branch in self.branches)


@MODELS.register_module()
class StripeConvNeXt(ConvNeXt):
    """mmpretrain's ConvNeXt with :class:`StripeConv2d` for its 7×7 kernels.

    Args:
        kernel_sizes (Sequence[int]): K of each stage. Default: SLaK's
            (51, 49, 47, 13).
        **kwargs: Of :class:`mmpretrain.models.ConvNeXt`.

    Raises:
        ValueError: If there is not one kernel size a stage.
    """

    def __init__(
        self, *, kernel_sizes: Sequence[int] = (51, 49, 47, 13), **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if len(kernel_sizes) != self.num_stages:
            raise ValueError(
                f'kernel_sizes must have one entry for each of the '
                f'{self.num_stages} stages, got {tuple(kernel_sizes)}'
            )
        for stage, channels, size in zip(
            self.stages, self.channels, kernel_sizes, strict=True
        ):
            for block in stage:
                block.depthwise_conv = StripeConv2d(channels, size)
