"""Global response normalisation."""

import torch
from torch import Tensor, nn


class GRN(nn.Module):
    """Global response normalisation of ConvNeXt V2.

    A channel is scaled by the length that it has over the whole map, relative
    to the mean of all channels: ``y = gamma * x * n + beta + x`` (`ConvNeXt V2
    <https://arxiv.org/abs/2301.00808>`_). At the start ``y`` is ``x``.

    Args:
        channels (int): C.
        eps (float): Added to the mean length. Default: 1e-6.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, H, W, C)``; same shape."""
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scale = length / (length.mean(-1, keepdim=True) + self.eps)
        return torch.addcmul(x + self.beta, self.gamma * scale, x)
