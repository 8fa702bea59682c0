"""ConvNeXts of every library start a PeLK that computes the same."""

import pytest
import torch
import torchvision
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from pelk_mm.models import PeLK
from pelk_mm.models.utils import find_convnexts
from tests.helpers.convnext_layouts import (
    BACKBONE,
    BACKBONE_V2,
    CONVNEXT,
    LAYOUTS,
    LAYOUTS_V2,
    SIZE,
    make_convnext,
    randomise,
    segmentor,
    stage_outputs,
    write,
)

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def assert_same(model: PeLK, convnext: nn.Module) -> None:
    """Stage by stage, to rounding; and in every output that has a norm."""
    pairs = zip(
        stage_outputs(model.eval(), IMAGES),
        stage_outputs(convnext, IMAGES),
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def start(state: dict, path, prefix: str = 'backbone.', **changes) -> PeLK:
    """A PeLK with a file as its ``init_cfg``, as a config has it."""
    torch.save(state, path)
    cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    model = PeLK(**{**BACKBONE, **changes}, init_cfg=cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    'layout, v2',
    [(layout, False) for layout in LAYOUTS]
    + [(layout, True) for layout in LAYOUTS_V2],
)
def test_every_layout_starts_the_same_network(layout, v2, tmp_path):
    convnext = make_convnext(v2)
    state = write(convnext, layout)
    changes = BACKBONE_V2 if v2 else {}
    model = start(state, tmp_path / 'x.pth', **changes)
    assert_same(model, convnext)
    own, theirs = model.state_dict(), convnext.state_dict()
    has_final = layout not in ('timm, features_only', 'open_clip')
    for name in ('norm3.weight', 'norm3.bias'):
        assert torch.equal(own[name], theirs[name]) == has_final
    outside = own['stages.0.blocks.0.conv.large.weight'].clone()
    outside[..., 3:10, 3:10] = 0
    assert not outside.any()


def test_what_is_logged(tmp_path, capsys):
    start(write(make_convnext(), 'timm'), tmp_path / 'x.pth')
    out = capsys.readouterr().out
    assert (
        'x.pth: read as ConvNeXt (timm), 7×7 kernels grown to 31×31, 15×15, '
        '13×13 and 9×9'
    ) in out
    assert 'missing: norm0.weight' in out and 'WARNING' not in out


def test_pointwise_convolutions_are_linear_layers(tmp_path):
    convnext = make_convnext(linear_pw_conv=False)
    for layout in ('mmpretrain', 'timm'):
        state = write(convnext, layout)
        assert any(
            v.ndim == 4 and 'stages.2' in k and v.shape[-1] == 1
            for k, v in state.items()
        )
        assert_same(start(state, tmp_path / 'x.pth'), convnext)


def test_other_kernel_sizes(tmp_path):
    """timm has them by stage, mmpretrain in its block alone."""
    state = write(make_convnext(), 'timm')
    name = 'stages.2.blocks.1.conv_dw.weight'
    state |= {
        key: value[..., 1:-1, 1:-1]
        for key, value in state.items()
        if key.startswith('stages.2.') and key.endswith('conv_dw.weight')
    }
    (convnext,) = find_convnexts(state)
    assert convnext.kernel_sizes == [7, 7, 5, 7]
    model = start(state, tmp_path / 'x.pth')
    weight = model.stages[2].blocks[1].conv.large.weight
    centre = (weight.shape[-1] - 5) // 2
    inner = slice(centre, centre + 5)
    assert torch.equal(weight[..., inner, inner], state[name])


def test_fewer_stages_than_the_file(tmp_path):
    convnext = make_convnext()
    state = write(convnext, 'torchvision')
    model = start(state, tmp_path / 'x.pth', out_indices=[0, 1])
    outputs = stage_outputs(model.eval(), IMAGES)
    for ours, theirs in zip(
        outputs, stage_outputs(convnext, IMAGES), strict=False
    ):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_stem_for_other_images_starts_anew(tmp_path, capsys):
    state = write(make_convnext(), 'Hugging Face')
    model = start(state, tmp_path / 'x.pth', in_channels=4)
    assert 'images of 3 channels' in capsys.readouterr().out
    name = 'convnext.embeddings.patch_embeddings.bias'
    assert torch.equal(model.downsample_layers[0][0].bias, state[name])


def test_two_convnexts_are_told_apart_by_the_prefix(tmp_path):
    student, teacher = make_convnext(), make_convnext()
    state = {
        prefix + name: value
        for prefix, one in (('student.', student), ('teacher.', teacher))
        for name, value in write(one, 'original').items()
    }
    assert_same(start(state, tmp_path / 'x.pth', 'teacher'), teacher)
    with pytest.raises(RuntimeError, match=r"'student\.', 'teacher\.'"):
        start(state, tmp_path / 'x.pth')


@pytest.mark.parametrize('how', ['torch', 'mmengine'])
def test_whole_models_load_as_their_own(how):
    """Heads and all, and ``strict``."""
    source = randomise(segmentor(CONVNEXT))
    model = segmentor(dict(type='PeLK', **BACKBONE))
    state = source.state_dict()
    if how == 'torch':
        model.load_state_dict(state, strict=True)
    else:
        load_state_dict(model, state, strict=True)
    assert 'backbone.stages.0.0.depthwise_conv.weight' in state
    with torch.no_grad():
        logits = [one.eval()(IMAGES) for one in (model, source)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


ELSE = dict(depths=[1, 1, 3, 1], channels=[8, 12, 16, 20])


@pytest.mark.parametrize(
    'changes, v2, message',
    [
        (
            dict(arch=dict(BACKBONE['arch'], **ELSE)),
            False,
            r'it has depths \[1, 1, 3, 1\]\. Build it with arch=dict\('
            r'depths=\(1, 1, 2, 1\), channels=\(8, 12, 16, 20\), '
            r'kernel_sizes=\(31, 15, 13, 9\), center_radius=3\), '
            r'conv_ratio=1.0, small_kernel=None, pos_embed=False$',
        ),
        (
            dict(arch=dict(BACKBONE['arch'], channels=[8, 12, 16, 24])),
            False,
            r'with depths \[1, 1, 2, 1\] and channels \[8, 12, 16, 20\], '
            r'which this PeLK cannot be: it has channels \[8, 12, 16, 24\]',
        ),
        (dict(conv_ratio=0.5), False, 'only a part of the channels'),
        (dict(small_kernel=5), False, 'small kernels'),
        (dict(pos_embed=True), False, 'positional embeddings'),
        (dict(layer_scale_init_value=0.0), False, 'a LayerScale, unlike it'),
        (
            dict(use_grn=True),
            True,
            'no LayerScale, unlike it.*use_grn=True, layer_scale_init_value=0',
        ),
        (dict(layer_scale_init_value=0.0), True, 'a GRN, unlike it'),
        (dict(use_grn=True), False, 'no GRN, unlike it'),
        (
            dict(arch=dict(BACKBONE['arch'], center_radius=2)),
            False,
            r'kernels of 7×7 need an unshared centre of radius 3 in every '
            r'stage, got radii \[2, 2, 2, 2\].*center_radius=3',
        ),
        (
            dict(arch=dict(SIZE, kernel_sizes=[31, 15, 13, 5])),
            False,
            r'got radii \[2, 2, 2, 2\].*kernel_sizes=\(31, 15, 13, 7\)',
        ),
    ],
)
def test_a_pelk_that_cannot_be_it(changes, v2, message, tmp_path):
    state = write(make_convnext(v2), 'timm')
    with pytest.raises(RuntimeError, match=message) as error:
        start(state, tmp_path / 'x.pth', **changes)
    version = ' V2' if v2 else ''
    start_of = f'{tmp_path}/x.pth: the checkpoint holds a ConvNeXt{version} ('
    assert str(error.value).startswith(start_of)


def test_the_arch_is_said_by_its_name():
    with torch.device('meta'):
        model = PeLK('convnext-tiny-101')
        other = torchvision.models.convnext_small()
    with pytest.raises(RuntimeError, match="arch='convnext-small-101'$"):
        model.load_state_dict(other.state_dict())


def overlap(state: dict) -> None:
    state['stem.0.weight'] = torch.zeros(4, 3, 3, 3)
    state['stem.2.weight'] = state['stem.1.weight']


def drop_biases(state: dict) -> None:
    for name in [*state]:
        if 'norm' in name and name.endswith('bias'):
            del state[name]


def be_another(state: dict) -> None:
    state['stages.1.blocks.0.attention.weight'] = torch.zeros(1)


def be_even(state: dict) -> None:
    for name, value in state.items():
        if 'conv_dw.weight' in name:
            state[name] = value[..., 1:, 1:]


@pytest.mark.parametrize(
    'change, message',
    [
        (overlap, r"convolution of 3×3, expected patches of 4×4 .*'_ols'"),
        (drop_biases, r"norms have no bias \(RMS norms, timm's '_rms'\)"),
        (be_another, 'attention.weight, which no ConvNeXt has'),
        (be_even, 'kernels of 1×6×6, expected depthwise ones of an odd size'),
    ],
)
def test_what_no_pelk_computes(change, message, tmp_path):
    state = write(make_convnext(), 'timm')
    change(state)
    with pytest.raises(RuntimeError, match=f'{message}.*no PeLK computes'):
        start(state, tmp_path / 'x.pth')


def test_other_models_are_no_convnext():
    assert not find_convnexts(PeLK(**BACKBONE).state_dict())
    assert not find_convnexts({'stages.0.0.conv.weight': torch.zeros(1)})
