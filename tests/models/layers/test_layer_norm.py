import torch
from torch import nn

from pelk_mm.models.layers import LayerNorm2d


def test_equals_layer_norm_over_channels():
    norm = LayerNorm2d(6, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5)
    mean = x.mean(1, keepdim=True)
    deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected = (x - mean) / deviation * norm.weight[:, None, None] + norm.bias[
        :, None, None
    ]
    torch.testing.assert_close(norm(x), expected)


def test_result_is_channels_last():
    y = LayerNorm2d(6)(torch.randn(2, 6, 3, 5))
    assert y.is_contiguous(memory_format=torch.channels_last)
