"""Global response normalisation."""

import torch
from mmpretrain.models.utils import norm

from pelk_mm.models.layers import GRN


def test_it_does_nothing_at_the_start():
    x = torch.randn(2, 5, 4, 7)
    assert torch.equal(GRN(7)(x), x)


def test_it_is_that_of_mmpretrain():
    torch.manual_seed(0)
    layer, reference = GRN(7).double(), norm.GRN(7).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 4, 7, dtype=torch.double, requires_grad=True)
    expected = reference(x, data_format='channel_last')
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x)
