"""Layer normalisation over the channels of a feature map."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of ``(N, C, H, W)``, any H and W.

    The result is laid out channels-last, without a copy if the input is.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def reach_all(y: Tensor, norms: Iterable[nn.Module]) -> Tensor:
    """Make an output depend on several norms, with the same values.

    Whoever reads one output of a backbone gives the norms of those that
    nobody reads a gradient, of zeros; DistributedDataParallel waits for one
    from every parameter. What is appended is the empty beginning of each of
    them.

    Args:
        y (Tensor): Any output ``(..., W)``.
        norms (Iterable[nn.Module]): Whose parameters it shall reach.

    Returns:
        Tensor: A copy of ``y``.
    """
    weights = [weight for norm in norms for weight in norm.parameters()]
    if not weights:
        return y
    nothing = torch.cat([weight.flatten()[:0] for weight in weights])
    return torch.cat((y, nothing.to(y).expand(*y.shape[:-1], 0)), -1)
