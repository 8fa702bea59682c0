"""The demos run from data to picture; what they share does its job."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from pelk_mm.datasets.digit_scenes import Recipe
from pelk_mm.demo import TASKS, run, run_demo
from pelk_mm.demo.pictures import (
    Panel,
    colour_labels,
    draw_instances,
    draw_rows,
)
from pelk_mm.demo.run import _replace_root
from pelk_mm.models import PeLK
from pelk_mm.utils.errors import LaunchError

TINY = Recipe(
    train_scenes=4,
    val_scenes=3,
    scene_size=64,
    train_digits=10,
    val_digits=10,
    digit_size=32,
)
#: Fields that make each demo a matter of seconds.
ALL = {
    'train_dataloader.batch_size': 2,
    **{
        f'{split}_dataloader.{field}': value
        for split in ('train', 'val', 'test')
        for field, value in (('num_workers', 0), ('persistent_workers', False))
    },
}
SHORT = {
    'segmentation': {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2},
    'classification': {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2},
    # Its weights come from a test of their own.
    'detection': {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'model.backbone.init_cfg': None,
        'model.test_cfg.rcnn.score_thr': 0.0,
    },
}


@pytest.mark.parametrize('task', list(TASKS))
def test_demo_trains_evaluates_and_draws(task, tmp_path, root):
    result = run_demo(
        task,
        root / 'configs',
        data_root=tmp_path / 'data',
        work_dir=tmp_path / 'work',
        recipe=TINY,
        options={**ALL, **SHORT[task]},
    )

    assert list(result.figures) == list(TASKS[task].metrics)
    assert all(0 <= value <= 1 for value in result.figures.values())
    assert result.images > 0
    assert result.picture.parent == tmp_path / 'work'
    pixels = np.asarray(Image.open(result.picture).convert('RGB'))
    assert pixels.std() > 10
    assert list((tmp_path / 'work').glob('*.pth'))


def test_detection_starts_from_the_classification_demo(
    tmp_path, root, monkeypatch
):
    """It runs that demo where it was not run, and loads what it saved."""
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / 'work_dirs/demo_pelk_digits/epoch_8.pth'
    ran = []

    def classify(name, configs, data_root, work_dir, recipe):
        ran.append((name, Path(data_root), Path(work_dir), recipe))
        config = Config.fromfile(root / 'configs' / TASKS[name].config)
        arch = config.model.backbone.arch
        backbone = PeLK(arch, layer_scale_init_value=1.0)
        for parameter in backbone.parameters():
            torch.nn.init.constant_(parameter, 0.125)
        weights.parent.mkdir(parents=True)
        torch.save(
            {
                'state_dict': {
                    f'backbone.{key}': value
                    for key, value in backbone.state_dict().items()
                }
            },
            weights,
        )

    config = Config.fromfile(root / 'configs' / TASKS['detection'].config)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(run, 'run_demo', classify)
            run._make_weights(
                TASKS['detection'],
                config,
                root / 'configs',
                tmp_path / 'data',
                TINY,
            )
    assert ran == [
        (
            'classification',
            tmp_path / 'data',
            Path('work_dirs/demo_pelk_digits'),
            TINY,
        )
    ]

    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    own_norms = [f'norm{i}' for i in range(3)]
    for name, parameter in backbone.named_parameters():
        if name.split('.')[0] not in own_norms:
            assert (parameter == 0.125).all(), name


def test_detection_ends_at_once_without_compiled_operators(
    tmp_path, root, monkeypatch
):
    """Before the minutes that classification takes."""
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    with pytest.raises(LaunchError, match='the demo of detection needs mmcv'):
        run_demo('detection', root / 'configs', data_root=tmp_path / 'data')
    assert not (tmp_path / 'data').exists()


def test_weights_of_ones_own_are_not_made(tmp_path, root, monkeypatch):
    monkeypatch.setattr(run, 'run_demo', lambda *args: pytest.fail('ran'))
    config = Config.fromfile(root / 'configs' / TASKS['detection'].config)
    config.model.backbone.init_cfg.checkpoint = str(tmp_path / 'absent.pth')
    run._make_weights(
        TASKS['detection'], config, root / 'configs', tmp_path, TINY
    )


def test_a_folder_of_other_things_is_left_alone(tmp_path, root):
    own = tmp_path / 'data' / 'precious.txt'
    own.parent.mkdir()
    own.write_text('mine')
    with pytest.raises(FileExistsError, match='not a folder of digit scenes'):
        run_demo('segmentation', root / 'configs', data_root=own.parent)
    assert own.read_text() == 'mine'


def test_the_data_root_is_replaced_wherever_it_stands():
    config = Config(
        dict(
            loader=dict(dataset=dict(data_root='data/digit_scenes/coco')),
            evaluators=[dict(ann_file='data/digit_scenes/a.json')],
            pair=('data/digit_scenes', 3),
            other='data/digit_scenes_2/x',
        )
    )
    _replace_root(config, '/elsewhere')
    assert config.loader.dataset.data_root == '/elsewhere/coco'
    assert config.evaluators[0].ann_file == '/elsewhere/a.json'
    assert tuple(config.pair) == ('/elsewhere', 3)
    assert config.other == 'data/digit_scenes_2/x'


def test_labels_are_painted_and_ignored_pixels_white():
    painted = colour_labels(
        np.array([[0, 1], [255, 2]]), [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    )
    assert painted.dtype == np.uint8
    assert painted.tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[255, 255, 255], [7, 8, 9]],
    ]


def test_instances_are_drawn_where_they_are():
    image = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 8:12, 16:20] = True
    drawn = draw_instances(
        image,
        np.array([[12.0, 5, 24, 15]]),
        np.array([1]),
        mask,
        [(0, 0, 0), (200, 0, 0)],
        ['a', 'b'],
        np.array([0.75]),
        scale=2,
    )
    assert drawn.shape == (40, 60, 3) and drawn.dtype == np.uint8
    assert (image == 100).all()
    assert drawn[20, 36].tolist() == [150, 50, 50]
    # The middle of the box's left and right edges.
    assert drawn[20, 24].tolist() == drawn[20, 48].tolist() == [200, 0, 0]
    assert (drawn[32:] == 100).all() and (drawn[:, :20] == 100).all()


def test_nothing_found_draws_the_image():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    drawn = draw_instances(
        image,
        np.zeros((0, 4)),
        np.zeros(0, int),
        np.zeros((0, 3, 3), bool),
        [],
        [],
        np.zeros(0),
    )
    assert (drawn[::3, ::3] == image).all()


@pytest.mark.parametrize('count', [1, 3, 4, 7])
def test_every_panel_is_drawn(tmp_path, count):
    colours = [(40 + 30 * i, 0, 255 - 30 * i) for i in range(count)]
    rows = [
        [
            Panel(np.full((8, 8, 3), colour, np.uint8), 'a'),
            Panel(np.full((8, 8, 3), (0, 255, 0), np.uint8), 'b'),
        ]
        for colour in colours
    ]
    path = draw_rows(
        rows, tmp_path / 'new' / 'picture.png', 'title', {'green': (0, 255, 0)}
    )

    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    for colour in [*colours, (0, 255, 0)]:
        assert (pixels == colour).all(axis=1).sum() > 100
    assert [file.name for file in path.parent.iterdir()] == ['picture.png']


def test_long_captions_do_not_overlap(tmp_path):
    """They break into lines, as the class names of one's own may be long."""
    panel = Panel(np.full((8, 8, 3), (0, 0, 255), np.uint8), 'a name ' * 9)
    path = draw_rows([[panel] * 4], tmp_path / 'picture.png')

    pixels = np.asarray(Image.open(path).convert('RGB'))
    blue = (pixels == (0, 0, 255)).all(axis=2).any(axis=0)
    ends = np.flatnonzero(np.diff(blue))[1:-1].reshape(-1, 2)
    assert len(ends) == 3
    assert (pixels[:, ends.sum(axis=1) // 2] == 255).all()
