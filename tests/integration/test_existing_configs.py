"""The libraries' own configs take PeLK in the three ways that are documented.

From each library's own file only the backbone and the channels behind it are
exchanged. ``EXCHANGES`` is what a user writes behind ``--cfg-options``; a
small arch in place of a named one keeps the tests short.
"""

import json
import re
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from pelk_mm.datasets.digit_scenes import Recipe, make_digit_scenes
from pelk_mm.models import PeLK
from pelk_mm.utils.command_line import parse_value
from tests.conftest import ROOT
from tests.helpers import forked

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), kernel_sizes=(13, 9, 7, 5)
)
_MAPS = [
    'model.backbone._delete_=True',
    'model.backbone.type=pelk_mm.PeLK',
    'model.backbone.out_indices=0,1,2,3',
]
# Library and config: what to exchange, with the channels left open.
EXCHANGES = {
    ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py'): [
        'model.backbone._delete_=True',
        'model.backbone.type=pelk_mm.PeLK',
        'model.backbone.gap_before_final_norm=False',
        'model.head.in_channels={3}',
    ],
    ('mmseg', 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'): [
        'model.pretrained=None',
        *_MAPS,
        'model.decode_head.in_channels={0},{1},{2},{3}',
        'model.auxiliary_head.in_channels={2}',
    ],
    ('mmseg', 'fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py'): [
        'model.pretrained=None',
        *_MAPS,
        'model.decode_head.in_channels={3}',
        'model.auxiliary_head.in_channels={2}',
    ],
    ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'): [
        *_MAPS,
        'model.neck.in_channels={0},{1},{2},{3}',
    ],
    ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'): [
        *_MAPS,
        'model.neck.in_channels={0},{1},{2},{3}',
    ],
}


def mim(library: str) -> Path:
    """Where an installed library has its configs and tools."""
    return Path(find_spec(library).origin).parent / '.mim'


def exchanges(case: tuple[str, str]) -> list[str]:
    """The command-line options for the small arch."""
    options = [text.format(*ARCH['channels']) for text in EXCHANGES[case]]
    for key, value in ARCH.items():
        options.append(
            f'model.backbone.arch.{key}=' + ','.join(map(str, value))
        )
    return options


def parsed(options: list[str]) -> dict:
    return {
        key: parse_value(value)
        for key, value in (option.split('=', 1) for option in options)
    }


def ids(case: tuple[str, str]) -> str:
    return Path(case[1]).stem


def batch(library: str) -> dict:
    """Two random pictures with something to learn in each."""
    if library == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return dict(
            inputs=torch.randint(0, 256, (2, 3, 64, 64)).float(),
            data_samples=[DataSample().set_gt_label(i) for i in range(2)],
        )
    images = [
        torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)
    ]
    if library == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        samples = [
            SegDataSample(
                gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, 64, 64))),
                metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)),
            )
            for _ in range(2)
        ]
    else:
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2,
            [[3, 64, 64]] * 2,
            num_classes=80,
            with_mask=True,
            num_items=[2, 2],
        )
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('case', EXCHANGES, ids=ids)
def test_own_config_trains_with_pelk(case):
    """The model of the library's file: loss, and a gradient everywhere."""
    library, file = case
    config = Config.fromfile(mim(library) / 'configs' / file)
    config.merge_from_dict(parsed(exchanges(case)))
    init_default_scope(library)
    model_config = config.model.copy()
    if library == 'mmpretrain':
        model_config.data_preprocessor = config.data_preprocessor
    model = revert_sync_batchnorm(MODELS.build(model_config))
    assert isinstance(model.backbone, PeLK)

    model.train()
    # mmsegmentation's size is for its training crops.
    if library == 'mmseg':
        model.data_preprocessor.size = (64, 64)
    data = model.data_preprocessor(batch(library), training=True)
    loss, _ = model.parse_losses(
        model.loss(data['inputs'], data['data_samples'])
    )
    assert torch.isfinite(loss)
    loss.backward()
    grads = {
        name: parameter.grad
        for name, parameter in model.backbone.named_parameters()
    }
    # RetinaNet's and FCN's necks and heads leave the first outputs unused:
    # zeros there, or several processes would wait for them.
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert grads['stages.0.blocks.0.conv.large.weight'].abs().sum() > 0


# The two ways to write it into a config of one's own, as in the README.
CHILD = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
{imports}
model = dict(
    backbone=dict(
        _delete_=True, type='{name}', arch='tiny', out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[124, 249, 499, 998]))
"""


@pytest.mark.parametrize(
    'imports, name',
    [
        ("custom_imports = dict(imports=['pelk_mm'])", 'PeLK'),
        ('', 'pelk_mm.PeLK'),
    ],
    ids=['custom_imports', 'scope'],
)
def test_own_config_file_on_top_of_a_librarys(imports, name, tmp_path):
    file = tmp_path / 'retinanet_pelk.py'
    file.write_text(CHILD.format(imports=imports, name=name))
    script = tmp_path / 'build.py'
    script.write_text(
        'import torch\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS, init_default_scope\n'
        f'config = Config.fromfile({str(file)!r})\n'
        "init_default_scope('mmdet')\n"
        "with torch.device('meta'):\n"
        '    model = MODELS.build(config.model)\n'
        'print(type(model).__name__, type(model.backbone).__module__,\n'
        '      model.neck.in_channels)\n'
    )
    # Nothing has imported pelk_mm there.
    done = forked.run(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        'RetinaNet pelk_mm.models.backbones.pelk [124, 249, 499, 998]'
    ) in done.stdout


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """Digit scenes with the categories of COCO."""
    root = make_digit_scenes(
        tmp_path_factory.mktemp('existing') / 'digits',
        Recipe(
            train_scenes=4,
            val_scenes=1,
            scene_size=64,
            train_digits=10,
            val_digits=10,
            digit_size=32,
        ),
        progress=False,
    )
    from mmdet.datasets import CocoDataset

    file = root / 'coco/annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    names = CocoDataset.METAINFO['classes']
    categories = content['categories']
    last = max(category['id'] for category in categories)
    # Digits bear the first names; of the others there are no boxes.
    more = range(last + 1, last + 1 + len(names) - len(categories))
    categories += [dict(id=i) for i in more]
    for category, name in zip(categories, names, strict=True):
        category['name'] = name
    file.write_text(json.dumps(content))
    return root


_NO_VALIDATION = ['val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
#: What makes of a library's recipe a few iterations on small pictures.
SHORT = {
    'mmpretrain': [
        'train_dataloader.dataset.data_root={root}/imagenet',
        'train_dataloader.dataset.metainfo.classes=a,b,c,d,e,f,g,h,i,j',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'train_cfg.max_epochs=1',
    ],
    'mmseg': [
        'train_dataloader.dataset.data_root={root}/ade/ADEChallengeData2016',
        'train_dataloader.dataset.pipeline.2.scale=(128,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'model.data_preprocessor.size=(64,64)',
        'train_cfg.max_iters=2',
    ],
    'mmdet': [
        'train_dataloader.dataset.data_root={root}/coco',
        'train_dataloader.dataset.indices=4',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'train_cfg.max_epochs=1',
        # Of detectors with two stages.
        'model.train_cfg.rcnn.sampler.num=16',
    ],
}


def examples(quick: str) -> pytest.MarkDecorator:
    """Every documented example, all but one of them slow."""
    cases = [
        case
        if quick in case[1]
        else pytest.param(case, marks=pytest.mark.slow)
        for case in EXCHANGES
    ]
    return pytest.mark.parametrize('case', cases, ids=ids)


def train(
    case: tuple[str, str], command: list, scenes: Path, tmp_path: Path
) -> None:
    """Two iterations by a tool that takes a config and options."""
    library, file = case
    done = forked.run(
        *command,
        mim(library) / 'configs' / file,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *exchanges(case),
        *[option.format(root=scenes) for option in SHORT[library]],
        *_NO_VALIDATION,
        f'train_dataloader.batch_size={1 if library == "mmdet" else 2}',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'default_hooks.logger.interval=1',
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'pelk_mm.PeLK' in log.read_text()
    losses = re.findall(r'\[ *2/ *\d+\].* loss: (\S+)', log.read_text())
    assert losses and all(isfinite(float(loss)) for loss in losses)
    assert list((tmp_path / 'work').glob('*.pth'))


@examples(quick='mask_rcnn')
def test_librarys_own_train_script(case, scenes, tmp_path):
    train(case, [mim(case[0]) / 'tools/train.py'], scenes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('case', EXCHANGES, ids=ids)
def test_on_two_processes(case, scenes, tmp_path):
    """Each waits for every gradient; the libraries' tools want GPUs for it."""
    launcher = find_spec('torch.distributed.run').origin, '--standalone'
    script = ROOT / 'tools/train.py', '--launcher=pytorch'
    command = [*launcher, '--nproc-per-node=2', *script]
    train(case, command, scenes, tmp_path)
