"""The stripes that receptive fields are compared with."""

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis.backbones import build_backbone
from pelk_mm.analysis.stripe_convnext import StripeConv2d, StripeConvNeXt


def test_one_pixel_spreads_as_a_cross():
    conv = StripeConv2d(1, 11).eval()
    assert [tuple(b[0].weight.shape[2:]) for b in conv.branches] == [
        (11, 5),
        (5, 11),
        (5, 5),
    ]
    for branch in conv.branches:
        torch.nn.init.ones_(branch[0].weight)
    image = torch.zeros(1, 1, 21, 21)
    image[..., 10, 10] = 1
    expected = torch.zeros(21, 21)
    expected[5:16, 8:13] += 1
    expected[8:13, 5:16] += 1
    expected[8:13, 8:13] += 1
    assert torch.allclose(conv(image)[0, 0], expected, atol=1e-4)


def test_the_config_builds_slaks_kernels(root):
    backbone = build_backbone(
        Config.fromfile(root / 'configs/comparison/stripe_convnext_t_in1k.py')
    )
    kernels = {
        max(branch[0].kernel_size)
        for stage in backbone.stages
        for block in stage
        for branch in block.depthwise_conv.branches
    }
    assert kernels == {51, 49, 47, 13, 5}
    backbone.eval()
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert maps[0].shape[:2] == (1, 768)


def test_a_kernel_size_for_each_stage():
    with pytest.raises(ValueError, match='each of the 4 stages'):
        StripeConvNeXt(arch='tiny', kernel_sizes=(51, 49))
