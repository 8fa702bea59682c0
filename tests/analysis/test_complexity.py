"""Counts of models: by hand, and the paper's tables."""

import json

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis.complexity import count_complexity
from pelk_mm.analysis.paper import PAPER_ROWS
from pelk_mm.utils.config import build_model, load_config
from tests.helpers.models import ARCH, CLASSIFIER, DETECTOR, SEGMENTOR

#: What the architecture gives where the paper prints something else.
OWN_GMACS = {'pelk_t_in1k.py': 5.83, 'pelk_s_in1k.py': 10.92}
#: Decimals of what the paper and this project give of the others.
EXACT_GMACS = {
    'pelk_b_in1k.py': 18.4,
    'pelk_b_in1k_384.py': 54.0,
    'pelk_b_101_in1k_384.py': 68.4,
}
FIELDS = ('params', 'nonzero', 'macs_paper', 'macs_dense', 'macs_executed')
ALL = pytest.mark.parametrize(
    'config',
    [CLASSIFIER, SEGMENTOR, DETECTOR],
    ids=['classifier', 'segmentor', 'detector'],
)


@pytest.mark.parametrize('row', PAPER_ROWS, ids=lambda row: row.config[:-3])
def test_the_tables_of_the_paper(row, root):
    config = load_config(str(root / 'configs' / row.config))
    counts = count_complexity(config, row.shape)
    assert counts.sparsity == 0.4
    assert not counts.measured
    near = 0.8 if row.config == 'pelk_s_in1k.py' else 0.6
    assert counts.total('nonzero') / 1e6 == pytest.approx(row.params, abs=near)
    gmacs = counts.total('macs_paper') / 1e9
    if row.config in OWN_GMACS:
        assert gmacs == pytest.approx(OWN_GMACS[row.config], abs=0.01)
    elif row.config in EXACT_GMACS:
        assert gmacs == pytest.approx(EXACT_GMACS[row.config], abs=0.05)
    else:
        # Both as integers, as the paper prints them.
        assert abs(round(gmacs) - row.gmacs) <= 1


@ALL
def test_parameters_are_those_of_the_model(config):
    config = Config(config)
    model = build_model(config)
    counts = count_complexity(config, (64, 96), sparsity=0.25)
    assert counts.total('params') == sum(
        parameter.numel() for parameter in model.parameters()
    )
    classifier = config.default_scope == 'mmpretrain'
    dead = sum(
        parameter.numel() / 4
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 4)
        and (classifier or name.startswith('backbone.'))
    )
    assert counts.total('nonzero') == pytest.approx(
        counts.total('params') - dead
    )


@ALL
def test_relations_between_the_counts(config):
    dense = count_complexity(Config(config), (64, 96), sparsity=0)
    sparse = count_complexity(Config(config), (64, 96), sparsity=0.5)
    names = [part.name for part in dense.parts]
    assert {'stem', 'large kernels', 'FFN', 'downsampling'} <= set(names)
    for part, other in zip(dense.parts, sparse.parts, strict=True):
        assert part.name == other.name
        assert part.macs_executed == other.macs_executed
        assert part.macs_dense == other.macs_dense
        if part.name == 'auxiliary head':
            assert part.macs_paper == 0 < part.macs_dense
        else:
            assert part.macs_paper == part.macs_dense
        if part.name == 'large kernels':
            assert part.macs_executed < part.macs_dense
            assert other.macs_paper == part.macs_paper / 2
        else:
            assert part.macs_executed == part.macs_dense
    for field in FIELDS:
        assert dense.total(field) == sum(
            getattr(part, field) for part in dense.parts
        )
    assert json.loads(json.dumps(dense.as_dict()))['total'][
        'params'
    ] == dense.total('params')


def test_operations_by_hand():
    """Every layer of a small classifier, multiplied out."""
    counts = count_complexity(Config(CLASSIFIER), (64, 96), sparsity=0)
    depths, channels, kernels = (
        ARCH[key] for key in ('depths', 'channels', 'kernel_sizes')
    )
    expected = dict.fromkeys(
        ('stem', 'downsampling', 'large kernels', 'FFN'), 0
    )
    for stage, (depth, width, kernel) in enumerate(
        zip(depths, channels, kernels, strict=True)
    ):
        pixels = 64 * 96 // 16 // 4**stage
        if stage == 0:
            expected['stem'] = pixels * width * 3 * 16
        else:
            expected['downsampling'] += (
                pixels * width * channels[stage - 1] * 4
            )
        expected['FFN'] += depth * pixels * 2 * width * 4 * width
        expected['large kernels'] += (
            depth * pixels * int(0.375 * width) * kernel**2
        )
    found = {part.name: part.macs_dense for part in counts.parts}
    for name, macs in expected.items():
        assert found[name] == macs, name
    classes = CLASSIFIER['model']['head']['num_classes']
    assert found['head'] == channels[-1] * classes


def test_zeros_of_a_checkpoint_are_counted(tmp_path):
    config = Config(CLASSIFIER)
    torch.manual_seed(0)
    model = build_model(config)
    nonzero = 0
    for parameter in model.parameters():
        parameter.data.normal_()
        if parameter.ndim in (2, 4):
            parameter.data[torch.rand_like(parameter) < 0.7] = 0
        nonzero += int(parameter.count_nonzero())
    # A stage without a large kernel but for the centre.
    kernel = model.backbone.stages[0].blocks[0].conv.large.weight
    nonzero -= int(kernel.count_nonzero())
    kernel.data.zero_()
    kernel.data[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = 1
    nonzero += len(kernel)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'sparse.pth')

    counts = count_complexity(
        config, (64, 64), checkpoint=str(tmp_path / 'sparse.pth')
    )
    assert counts.measured
    assert counts.total('nonzero') == pytest.approx(nonzero)
    assert counts.sparsity == pytest.approx(0.7, abs=0.05)
    parts = {part.name: part for part in counts.parts}
    stem = model.backbone.downsample_layers[0][0].weight
    assert parts['stem'].macs_paper == pytest.approx(
        256 * int(stem.count_nonzero())
    )
    # The small kernel is merged into the centre, so its non-zeros count.
    block = model.backbone.stages[0].blocks[0].conv
    alone = count_complexity(config, (64, 64), sparsity=0)
    assert parts['large kernels'].macs_paper < 0.5 * alone.total('macs_dense')
    centre = (block.small.weight != 0).clone()
    centre[:, :, 2, 2] = True
    only = 256 * int(centre.sum())
    model.backbone.stages[0].merge()
    merged = model.backbone.stages[0]
    assert (
        256
        * int(
            merged.grid.expand(
                merged.blocks[0].conv.large.weight
            ).count_nonzero()
        )
        == only
    )


@pytest.mark.parametrize(
    'shape', [(60, 64), (64, 0), (-32, 32), (64,), (64, 64, 64)]
)
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match='multiples of 32'):
        count_complexity(Config(CLASSIFIER), shape)


@pytest.mark.parametrize('sparsity', [-0.1, 1, 2.5])
def test_sparsity_is_checked(sparsity):
    with pytest.raises(ValueError, match=r'in \[0, 1\)'):
        count_complexity(Config(CLASSIFIER), (64, 64), sparsity)


def test_assumed_or_counted_but_not_both():
    with pytest.raises(ValueError, match='both a sparsity'):
        count_complexity(Config(CLASSIFIER), (64, 64), 0.4, 'weights.pth')


def test_weights_of_another_model_are_refused(tmp_path):
    path = str(tmp_path / 'other.pth')
    torch.save(build_model(Config(SEGMENTOR)).state_dict(), path)
    with pytest.raises(RuntimeError, match='does not fit this model'):
        count_complexity(Config(CLASSIFIER), (64, 64), checkpoint=path)


@pytest.mark.parametrize(
    'name, gmacs, millions',
    [
        # As the libraries' own model zoos print them.
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 4.12, 25.56),
        ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', 4.46, 28.59),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 239, 37.97),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 207, 41.75),
    ],
)
def test_other_backbones(name, gmacs, millions):
    shape = (224, 224) if name.startswith('mmpretrain') else (800, 1280)
    counts = count_complexity(load_config(name), shape)
    assert counts.sparsity == 0
    assert counts.total('macs_executed') == counts.total('macs_dense')
    assert counts.total('macs_paper') == counts.total('macs_dense')
    assert counts.total('macs_dense') / 1e9 == pytest.approx(gmacs, rel=0.015)
    assert counts.total('params') / 1e6 == pytest.approx(millions, abs=0.01)


def test_what_would_be_counted_by_half_is_refused():
    detr = load_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
    with pytest.raises(ValueError, match='DETR cannot be counted.*decoder'):
        count_complexity(detr, (64, 64))
