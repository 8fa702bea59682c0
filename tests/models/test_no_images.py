"""A batch of no images, which detection heads meet, through the backbone."""

import torch

from pelk_mm.models import PeLK


def test_backbone():
    model = PeLK(
        dict(
            depths=(1, 1, 1, 1),
            channels=(8, 16, 24, 32),
            kernel_sizes=(51, 31, 13, 7),
        ),
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ).eval()
    images = torch.empty(0, 3, 64, 64, requires_grad=True)
    maps = model(images)
    assert [x.shape for x in maps] == [
        (0, 8, 16, 16),
        (0, 16, 8, 8),
        (0, 24, 4, 4),
        (0, 32, 2, 2),
    ]
    sum(x.sum() for x in maps).backward()
    assert images.grad.shape == images.shape
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name
