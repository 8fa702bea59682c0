"""from_convnext.py, as people call it."""

import re

import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from torch import nn

from pelk_mm.apis.conversion import convert_convnext, grow_checkpoint
from pelk_mm.engine.sparsity.state import STATE_KEY, unpack_masks
from pelk_mm.utils.config import build_model
from tests.helpers.convnext_layouts import (
    CONVNEXT,
    SIZE,
    WITH_HEADS,
    make_convnext,
    randomise,
    segmentor,
    write,
)
from tests.helpers.unsafe_checkpoints import poison

KERNELS = (31, 15, 13, 9)
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def run(run_tool):
    """Convert a file with the kernels above: exit status, stdout, stderr."""
    tool = 'model_converters/from_convnext.py'
    return lambda *args: run_tool(tool, *args, '--kernel-sizes', *KERNELS)


def printed_backbone(stdout: str) -> dict:
    """What one pastes into a config."""
    (line,) = (x for x in stdout.splitlines() if x.startswith('backbone='))
    return eval(f'dict({line})')['backbone']


def classifier(backbone: dict, neck: dict | None) -> nn.Module:
    head = dict(type='LinearClsHead', num_classes=3, in_channels=20)
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    model |= dict(neck=neck) if neck else {}
    return build_model(Config(dict(default_scope='mmpretrain', model=model)))


@pytest.mark.parametrize('layout', WITH_HEADS)
def test_classifiers_are_kept_whole(layout, run, tmp_path):
    """To their logits; timm's '_hnf' normalises the map, then averages."""
    map_first = layout == 'timm, norm first'
    convnext = make_convnext(gap_before_final_norm=not map_first)
    head = randomise(nn.Linear(20, 3))
    torch.save(write(convnext, layout, head), tmp_path / 'x.pth')
    status, out, err = run(tmp_path / 'x.pth', tmp_path / 'pelk.pth')
    assert status == 0, err
    assert 'kept besides: head.fc.weight, head.fc.bias' in out
    backbone = printed_backbone(out)
    assert ('gap_before_final_norm' in backbone) == map_first
    neck = dict(type='GlobalAveragePooling') if map_first else None
    model = classifier(backbone, neck).eval()
    model.load_state_dict(torch.load(tmp_path / 'pelk.pth')['state_dict'])
    with torch.no_grad():
        features = convnext(IMAGES)[3]
        expected = head(features.mean((2, 3)) if map_first else features)
        logits = model(IMAGES, mode='tensor')
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_segmentors_are_kept_whole(wrapper, run, tmp_path):
    source = randomise(segmentor(CONVNEXT))
    state = source.state_dict()
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')), cfg='secret')
    wrapped = {wrapper + name: value for name, value in state.items()}
    checkpoint = dict(state_dict=wrapped, meta=meta, optimizer={})
    torch.save(checkpoint, tmp_path / 'x.pth')
    status, out, err = run(tmp_path / 'x.pth', tmp_path / 'pelk.pth')
    assert status == 0, err
    backbone = printed_backbone(out)
    assert backbone['out_indices'] == (0, 1, 2, 3)
    model = segmentor(backbone)
    made = torch.load(tmp_path / 'pelk.pth')
    assert made.keys() == {'meta', 'state_dict', STATE_KEY}
    assert made['meta'] == dict(dataset_meta=meta['dataset_meta'])
    model.load_state_dict(
        {n.removeprefix(wrapper): v for n, v in made['state_dict'].items()}
    )
    with torch.no_grad():
        logits = [one.eval()(IMAGES) for one in (model, source)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_a_v2_of_safetensors(run, tmp_path):
    state = write(make_convnext(v2=True), 'timm')
    safetensors.torch.save_file(state, tmp_path / 'x.safetensors')
    status, out, err = run(tmp_path / 'x.safetensors', tmp_path / 'pelk.pth')
    assert status == 0, err
    assert out.splitlines()[:3] == [
        "read as ConvNeXt V2 (timm), its names starting with ''",
        'stage  blocks  channels  kernel',
        '    0       1         8  7 -> 31',
    ]
    assert 'kept besides: nothing' in out
    assert out.splitlines()[-2] == (
        "backbone=dict(type='PeLK', arch=dict(depths=(1, 1, 2, 1), "
        'channels=(8, 12, 16, 20), kernel_sizes=(31, 15, 13, 9), '
        'center_radius=3), conv_ratio=1.0, small_kernel=None, '
        'pos_embed=False, use_grn=True, layer_scale_init_value=0.0)'
    )


def test_new_cells_live_and_pruned_weights_do_not():
    state = write(make_convnext(), 'timm')
    name = 'stages.0.blocks.0.conv_dw.weight'
    pruned = torch.rand_like(state[name]) < 0.4
    pruned[0] = False  # no position is zero in all channels
    state[name][pruned] = 0
    made, _ = convert_convnext(state, KERNELS)
    masks = unpack_masks(made[STATE_KEY])
    name = 'backbone.stages.0.blocks.0.conv.large.weight'
    mask = masks.pop(name)
    assert mask.shape == made['state_dict'][name].shape == (8, 1, 13, 13)
    centre = (..., slice(3, 10), slice(3, 10))
    assert torch.equal(mask[centre], ~pruned)
    mask[centre] = True
    assert mask.all()
    assert all(mask.all() for mask in masks.values())
    assert {name for name in masks if 'large' in name}


def test_it_grows_further():
    small, _ = convert_convnext(write(make_convnext(), 'timm'), KERNELS)
    arch = dict(SIZE, kernel_sizes=(51, 31, 15, 9), center_radius=3)
    old = dict(SIZE, kernel_sizes=KERNELS, center_radius=3)
    with pytest.raises(RuntimeError, match='say which arch'):
        grow_checkpoint(small, arch)
    grown, stages = grow_checkpoint(small, arch, from_arch=old)
    assert [stage.error for stage in stages] == [0] * 4
    expected, _ = convert_convnext(
        write(make_convnext(), 'timm'), arch['kernel_sizes']
    )
    for name, value in expected['state_dict'].items():
        assert grown['state_dict'][name].shape == value.shape
    for mask in unpack_masks(grown[STATE_KEY]).values():
        assert mask.all()


@pytest.mark.parametrize(
    'kernels, radius, message',
    [
        ((31, 15, 13, 9), 2, 'radius 3 in every stage, got radii'),
        ((31, 15, 13, 5), 3, 'no room for a centre'),
        ((30, 15, 13, 9), 3, 'must be odd'),
    ],
)
def test_kernels_that_do_not_fit(kernels, radius, message, run_tool, tmp_path):
    torch.save(write(make_convnext(), 'timm'), tmp_path / 'x.pth')
    status, _, err = run_tool(
        'model_converters/from_convnext.py',
        tmp_path / 'x.pth',
        tmp_path / 'pelk.pth',
        '--kernel-sizes',
        *kernels,
        '--center-radius',
        radius,
    )
    assert status == 1 and message in err and 'x.pth' in err
    assert not (tmp_path / 'pelk.pth').exists()


def test_a_head_with_a_hidden_layer_is_left_out():
    """timm's '_mlp': its last layer alone would be another head."""
    state = write(make_convnext(), 'timm', nn.Linear(20, 3))
    state['head.pre_logits.fc.weight'] = torch.zeros(20, 20)
    made, _ = convert_convnext(state, KERNELS)
    assert all(name.startswith('backbone.') for name in made['state_dict'])


def test_checkpoints_of_something_else(run, tmp_path):
    source, out = tmp_path / 'x.pth', tmp_path / 'pelk.pth'
    two = {
        f'{prefix}.{name}': value
        for prefix in ('student', 'teacher')
        for name, value in write(make_convnext(), 'timm').items()
    }
    for state, message in (
        ({'fc.weight': torch.zeros(1)}, 'found none at all; .*fc.weight'),
        (two, r"found \['student\.', 'teacher\.'\]"),
        (
            write(make_convnext(), 'timm')
            | {'stages.0.blocks.0.attention': torch.zeros(1)},
            'attention, which no ConvNeXt has',
        ),
        (
            {
                name: value
                for name, value in write(make_convnext(), 'timm').items()
                if not name.startswith('stages.3')
            },
            'expected a ConvNeXt of 4 stages, got 3',
        ),
    ):
        torch.save(state, source)
        status, _, err = run(source, out)
        assert status == 1
        assert re.search(f'error: .*{message}', err) and 'x.pth' in err
    status, _, err = run(source, source)
    assert status == 2 and 'would replace the old one' in err
    assert not out.exists()


def test_pickled_objects_need_trust(run, tmp_path):
    marker, out = tmp_path / 'ran', tmp_path / 'pelk.pth'
    state = dict(model=write(make_convnext(), 'original'))
    path = poison(tmp_path / 'evil.pth', marker, state)
    status, _, err = run(path, out)
    assert status == 1 and 'from_convnext.py' in err
    assert not out.exists() and not marker.exists()
    status, _, err = run(path, out, '--trust')
    assert status == 0, err
    assert marker.exists() and out.exists()


def test_growing_a_convnext_says_how():
    state = write(make_convnext(), 'original')
    with pytest.raises(RuntimeError, match=r'from_convnext\.py'):
        grow_checkpoint(state, 'tiny')
