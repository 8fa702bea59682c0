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
        drawn = self.draw(x)
        if drawn is None:
            return x
        kept = 1 - self.drop_prob
        scale = ((drawn < kept) / kept).to(x.dtype)
        return x * scale.view(-1, *[1] * (x.ndim - 1))

    def draw(self, x: Tensor) -> Tensor | None:
        """A number in [0, 1) for each sample of ``(N, ...)``, float32.

        Those from ``1 - drop_prob`` on are dropped. None if none can be.
        """
        if not (self.training and self.drop_prob):
            return None
        return torch.rand(x.shape[0], device=x.device)

    def extra_repr(self) -> str:
        return f'{self.drop_prob}'
