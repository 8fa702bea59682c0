"""What the tests of layers and backbones share."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@pytest.fixture
def randomise():
    """A function that moves a module away from where it would start.

    At their start BatchNorms are the identity and biases zero, so that a
    merge which forgets or swaps them would pass unnoticed.
    """

    @torch.no_grad()
    def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor, low, high):
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) * (high - low)
                + low
            )

        for part in module.modules():
            if isinstance(part, _BatchNorm):
                uniform(part.running_mean, -1, 1)
                uniform(part.running_var, 0.5, 2)
                if part.affine:
                    uniform(part.weight, 0.5, 1.5)
                    uniform(part.bias, -1, 1)
            elif getattr(part, 'bias', None) is not None:
                uniform(part.bias, -0.5, 0.5)
        for name, parameter in module.named_parameters():
            if name.endswith('pos_embed'):
                uniform(parameter, -1, 1)
        return module

    return randomise
