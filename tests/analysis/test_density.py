"""Densities of checkpoints and of merged models."""

import pytest
import torch

from pelk_mm.analysis.density import (
    checkpoint_densities,
    merged_densities,
    plot_densities,
)
from pelk_mm.engine.sparsity.masks import draw_mask
from pelk_mm.engine.sparsity.state import STATE_KEY, pack_state
from pelk_mm.models import PeLK

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(8, 8, 8, 16), kernel_sizes=(13, 9, 7, 5)
)


def weights():
    linear = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    return {
        'a.weight': linear,
        'a.bias': torch.zeros(2),
        'b.weight': torch.ones(4, 1, 3, 3),
        'h': torch.zeros(1, 5, 5),
        'index': torch.zeros(3, 3, dtype=torch.long),
    }


def test_zeros_count_where_there_is_no_mask():
    for checkpoint in (weights(), dict(state_dict=weights(), meta={})):
        layers = checkpoint_densities(checkpoint)
        assert [
            (x.name, x.shape, x.weights, x.nonzero, x.masked, x.density)
            for x in layers
        ] == [
            ('a.weight', (2, 3), 6, 3, False, 0.5),
            ('b.weight', (4, 1, 3, 3), 36, 36, False, 1.0),
        ]


def test_masks_count_where_they_are():
    """A weight that is kept may be zero for a moment."""
    mask = weights()['a.weight'] != 0
    mask[0, 0] = True
    checkpoint = dict(
        state_dict=weights(), **{STATE_KEY: pack_state({'a.weight': mask})}
    )
    layer, _ = checkpoint_densities(checkpoint)
    assert (layer.nonzero, layer.masked) == (4, True)
    assert layer.as_dict()['density'] == 4 / 6


def test_nothing_to_count():
    with pytest.raises(ValueError, match='no 2-D or 4-D weights'):
        checkpoint_densities({'a.bias': torch.zeros(2)})


def sparse_pelk(small_kernel=5):
    """60 % of each weight is not zero."""
    model = PeLK(ARCH, small_kernel=small_kernel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim in (2, 4):
                param *= draw_mask(
                    param.shape, round(0.6 * param.numel()), generator
                )
    return model


def test_merging_fills_zeros_of_the_large_kernels_only():
    model = sparse_pelk()
    before = {
        layer.name: layer.nonzero
        for layer in checkpoint_densities(model.state_dict())
    }
    large = dict(model.named_parameters())
    # 3 of 8 channels, the stage's 5 x 5 centre; where either is not zero.
    expected = {}
    for name, param in large.items():
        if name.endswith('conv.large.weight'):
            small = large[name.replace('large', 'small')]
            nonzero = param != 0
            pad = (param.shape[-1] - 5) // 2
            nonzero[..., pad : pad + 5, pad : pad + 5] |= small != 0
            expected[name] = int(nonzero.sum())
    merged = merged_densities(model)
    assert {name: layer.nonzero for name, layer in merged.items()} == expected
    assert all(layer.nonzero > before[n] for n, layer in merged.items())


def test_merging_without_small_kernels_changes_nothing():
    assert merged_densities(sparse_pelk(small_kernel=None)) == {}


def test_merging_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(
        'pelk_mm.models.backbones.pelk.print_log',
        lambda message, **kwargs: said.append(message),
    )
    PeLK(ARCH).switch_to_deploy()
    assert said == []
    sparse_pelk().switch_to_deploy()
    (message,) = said
    # All of the kernels' weights together, 60 % not zero before.
    assert 'the large ones from 59.97% to 73' in message


def test_plot(tmp_path):
    path = tmp_path / 'new' / 'plot.png'
    plot_densities(checkpoint_densities(weights()), path)
    assert path.read_bytes().startswith(b'\x89PNG')
    assert list(path.parent.iterdir()) == [path]
