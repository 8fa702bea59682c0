"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop samples of a residual branch in training, and scale up the others.

    `Stochastic depth <https://arxiv.org/abs/1603.09382>`_.

    Args:
        drop_prob (float): Below 1. Default: 0.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Keep each sample of ``(N, ...)`` or set it to zero."""
        if not (self.training and self.drop_prob):
            return x
        kept = 1 - self.drop_prob
        shape = x.shape[0], *[1] * (x.ndim - 1)
        drawn = torch.rand(shape, device=x.device)
        return x * ((drawn < kept) / kept).to(x.dtype)

    def extra_repr(self) -> str:
        return f'{self.drop_prob}'
