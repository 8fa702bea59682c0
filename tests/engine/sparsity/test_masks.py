"""The policy on tensors made by hand."""

import math

import pytest
import torch
from torch import nn

from pelk_mm.engine.sparsity.masks import (
    active_count,
    draw_mask,
    drop_smallest,
    erk_densities,
    grow,
    mask_digest,
    mask_from_zeros,
    pack_mask,
    select_weights,
    silence_,
    spawn_generator,
    turnover,
    uniform_densities,
    unpack_mask,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mask_of(text):
    """'x.x' is [True, False, True]."""
    return torch.tensor([letter == 'x' for letter in text])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        )
        self.backbone.map = nn.Parameter(torch.zeros(1, 3, 3))
        self.backbone.gamma = nn.Parameter(torch.zeros(5))
        self.backbone.volume = nn.Conv3d(1, 1, 2, bias=False)
        self.head = nn.Linear(5, 2)


def test_select_takes_2d_and_4d_weights_only():
    assert list(select_weights(Model(), ['.'])) == [
        'backbone.0.weight',
        'backbone.2.weight',
        'head.weight',
    ]


def test_select_exclude_wins_over_include():
    model = Model()
    weights = select_weights(model, ['^backbone', '^head'], [r'\.0\.'])
    assert list(weights) == ['backbone.2.weight', 'head.weight']
    assert weights['head.weight'] is model.head.weight


@pytest.mark.parametrize(
    'include, exclude, guilty',
    [
        (['backbone', 'neck'], [], "include pattern 'neck'"),
        (['backbone'], ['bias'], "exclude pattern 'bias'"),
    ],
)
def test_select_names_the_pattern_that_matches_nothing(
    include, exclude, guilty
):
    with pytest.raises(ValueError, match=guilty):
        select_weights(Model(), include, exclude)


def test_select_nothing_left():
    with pytest.raises(ValueError, match='leave no weight'):
        select_weights(Model(), ['head'], ['head'])


SHAPES = dict(stem=(8, 3, 4, 4), depthwise=(16, 1, 5, 5), wide=(256, 64))


def overall(densities, shapes):
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(densities[n] * numel[n] for n in numel) / sum(numel.values())


def test_uniform_densities():
    assert uniform_densities(SHAPES, 0.6) == dict(
        stem=0.6, depthwise=0.6, wide=0.6
    )


def test_erk_densities_follow_the_shape():
    # Two layers, none of which fills up: densities as sum / product.
    shapes = dict(a=(100, 100), b=(300, 100))
    densities = erk_densities(shapes, 0.1)
    assert densities['a'] / densities['b'] == pytest.approx(
        (200 / 10000) / (400 / 30000)
    )
    assert overall(densities, shapes) == pytest.approx(0.1)


def test_erk_densities_fill_small_layers_and_keep_the_total():
    densities = erk_densities(SHAPES, 0.6)
    assert densities['stem'] == densities['depthwise'] == 1
    assert densities['wide'] < 0.6
    assert overall(densities, SHAPES) == pytest.approx(0.6)


def test_erk_densities_of_a_dense_network():
    assert erk_densities(SHAPES, 1.0) == dict(stem=1, depthwise=1, wide=1)


@pytest.mark.parametrize(
    'density, numel, count',
    [(0.6, 10, 6), (0.6, 961, 577), (1.0, 7, 7), (0.0, 7, 1), (1e-9, 7, 1)],
)
def test_live_count(density, numel, count):
    assert active_count(density, numel) == count


@pytest.mark.parametrize('count', [0, 1, 37, 60])
def test_draw_mask_has_the_count_and_depends_on_the_seed(count):
    mask = draw_mask((3, 4, 5), count, generator())
    assert mask.shape == (3, 4, 5) and mask.dtype == torch.bool
    assert mask.sum() == count
    assert mask.equal(draw_mask((3, 4, 5), count, generator()))
    if 0 < count < 60:
        assert not mask.equal(draw_mask((3, 4, 5), count, generator(1)))


def test_draw_mask_is_even():
    source = generator()
    hits = sum(draw_mask((10,), 6, source).int() for _ in range(2000))
    # 1200 expected, standard deviation 22.
    assert hits.min() > 1090 and hits.max() < 1310


def test_spawned_generators_differ_and_repeat():
    def numbers(parent):
        return [
            torch.rand(3, generator=spawn_generator(parent, 'cpu')).tolist()
            for _ in range(3)
        ]

    first = numbers(generator())
    assert first == numbers(generator())
    assert first[0] != first[1] != first[2]


def test_mask_from_zeros():
    weight = nn.Parameter(torch.tensor([[0.0, 1e-30], [-2.0, -0.0]]))
    mask = mask_from_zeros(weight)
    assert mask.tolist() == [[False, True], [True, False]]
    assert not mask.requires_grad


def test_positions_that_are_zero_in_all_channels_are_new():
    weight = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    expected = [[True, True, False], [True, False, True]]
    assert mask_from_zeros(weight.view(2, 1, 1, 3)).flatten(1).tolist() == (
        expected
    )
    # An ordinary layer may lose all that it does at a position.
    assert mask_from_zeros(weight.view(2, 3, 1, 1)).sum() == 2


@pytest.mark.parametrize(
    'text, rate, count',
    [
        ('xxxxxx....', 0.5, 3),
        ('xxxxxx....', 1.0, 4),
        ('xxxxxx....', 0.0, 0),
        ('xxxxxxxxx.', 0.5, 1),
        ('xxxxxxxxxx', 0.5, 0),
        ('x.........', 0.3, 0),
    ],
)
def test_turnover_is_bounded_by_the_dead(text, rate, count):
    assert turnover(mask_of(text), rate) == count


def test_drop_takes_the_smallest_live_weights():
    weight = torch.tensor([5.0, -0.1, 0.3, -4.0, 0.0, 0.01, 2.0, 0.0])
    mask = mask_of('xxxx.xx.')
    # Smallest first: 0.01, -0.1, 0.3; the dead zeros do not count.
    assert drop_smallest(weight, mask, 0).equal(mask)
    assert drop_smallest(weight, mask, 1).equal(mask_of('xxxx..x.'))
    assert drop_smallest(weight, mask, 3).equal(mask_of('x..x..x.'))
    assert mask.equal(mask_of('xxxx.xx.'))


def test_drop_prefers_live_zeros_in_order():
    weight = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert drop_smallest(weight, mask, 2).tolist() == [
        [False, False],
        [True, True],
    ]


def test_grow_random_adds_candidates_only():
    mask, candidates = mask_of('xx......'), mask_of('....xxxx')
    grown = grow(mask, candidates, 2, generator())
    assert grown.sum() == 4
    assert (grown & ~mask & ~candidates).sum() == 0
    assert (mask & ~grown).sum() == 0
    assert mask.equal(mask_of('xx......'))
    seen = sum(
        grow(mask, candidates, 2, generator(seed)).int() for seed in range(40)
    )
    assert (seen[4:] > 0).all() and (seen[2:4] == 0).all()


def test_grow_largest_takes_the_best_candidates():
    score = torch.tensor([9.0, 1.0, 7.0, 3.0, float('nan'), 5.0])
    grown = grow(mask_of('x.....'), mask_of('.xxxxx'), 3, generator(), score)
    assert grown.equal(mask_of('x.xx.x'))


def test_grow_largest_breaks_ties_at_random():
    score = torch.zeros(6)
    mask, candidates = mask_of('x.....'), mask_of('.xxxxx')
    results = {
        tuple(grow(mask, candidates, 2, generator(seed), score).tolist())
        for seed in range(20)
    }
    assert len(results) > 3


def test_silence_leaves_no_negative_zero_and_no_nan():
    weight = torch.tensor([-1.0, -2.0, float('nan'), 4.0])
    counter = torch.tensor(7.0)
    silence_([weight, counter], mask_of('x..x'))
    assert weight.tolist() == [-1, 0, 0, 4]
    assert not torch.signbit(weight[1])
    assert counter == 7


@pytest.mark.parametrize('shape', [(1,), (8,), (9,), (3, 5, 7), (16, 1, 5, 5)])
def test_pack_and_unpack(shape):
    mask = torch.rand(shape, generator=generator()) < 0.6
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert unpack_mask(packed, shape).equal(mask)


def test_pack_reads_a_transposed_mask_in_its_own_order():
    mask = (torch.rand(5, 7, generator=generator()) < 0.5).t()
    assert unpack_mask(pack_mask(mask), (7, 5)).equal(mask)


def test_unpack_refuses_another_size():
    packed = pack_mask(torch.ones(20, dtype=torch.bool))
    with pytest.raises(ValueError, match='takes 5 bytes of uint8, got 3'):
        unpack_mask(packed, (40,))
    with pytest.raises(ValueError, match='float32'):
        unpack_mask(packed.float(), (20,))


def test_digest_tells_masks_apart():
    masks = dict(a=mask_of('xx..'), b=mask_of('x'))
    digest = mask_digest(masks)
    assert digest == mask_digest(dict(reversed(masks.items())))
    others = [
        dict(masks, a=mask_of('x.x.')),
        dict(masks, a=mask_of('xx..').view(2, 2)),
        dict(a=masks['a'], c=masks['b']),
        dict(a=masks['a']),
    ]
    assert digest not in map(mask_digest, others)
