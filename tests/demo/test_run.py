"""The demos run from data to picture; what they share does its job."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from pelk_mm.datasets.digit_scenes import Recipe
from pelk_mm.demo import TASKS, run_demo
from pelk_mm.demo.pictures import Panel, colour_labels, draw_rows
from pelk_mm.demo.run import _replace_root

TINY = Recipe(
    train_scenes=4,
    val_scenes=3,
    scene_size=64,
    train_digits=10,
    val_digits=10,
    digit_size=32)
#: Fields that make each demo a matter of seconds.
SHORT = {
    'segmentation': {
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
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
        options=SHORT[task])

    assert result.metric == TASKS[task].metric
    assert 0 <= result.value <= 1
    assert result.images > 0
    assert result.picture.parent == tmp_path / 'work'
    pixels = np.asarray(Image.open(result.picture).convert('RGB'))
    assert pixels.std() > 10
    assert list((tmp_path / 'work').glob('*.pth'))


def test_a_folder_of_other_things_is_left_alone(tmp_path, root):
    own = tmp_path / 'data' / 'precious.txt'
    own.parent.mkdir()
    own.write_text('mine')
    with pytest.raises(FileExistsError, match='not a folder of digit scenes'):
        run_demo(
            'segmentation', root / 'configs', data_root=own.parent)
    assert own.read_text() == 'mine'


def test_the_data_root_is_replaced_wherever_it_stands():
    config = Config(
        dict(
            loader=dict(dataset=dict(data_root='data/digit_scenes/coco')),
            evaluators=[dict(ann_file='data/digit_scenes/a.json')],
            pair=('data/digit_scenes', 3),
            other='data/digit_scenes_2/x'))
    _replace_root(config, '/elsewhere')
    assert config.loader.dataset.data_root == '/elsewhere/coco'
    assert config.evaluators[0].ann_file == '/elsewhere/a.json'
    assert tuple(config.pair) == ('/elsewhere', 3)
    assert config.other == 'data/digit_scenes_2/x'


def test_labels_are_painted_and_ignored_pixels_white():
    painted = colour_labels(
        np.array([[0, 1], [255, 2]]), [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[1, 2, 3], [4, 5, 6]],
                                [[255, 255, 255], [7, 8, 9]]]


@pytest.mark.parametrize('count', [1, 3, 4, 7])
def test_every_panel_is_drawn(tmp_path, count):
    colours = [(40 + 30 * i, 0, 255 - 30 * i) for i in range(count)]
    rows = [[
        Panel(np.full((8, 8, 3), colour, np.uint8), 'a'),
        Panel(np.full((8, 8, 3), (0, 255, 0), np.uint8), 'b')
    ] for colour in colours]
    path = draw_rows(rows, tmp_path / 'new' / 'picture.png', 'title',
                     {'green': (0, 255, 0)})

    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    for colour in [*colours, (0, 255, 0)]:
        assert (pixels == colour).all(axis=1).sum() > 100
    assert [file.name for file in path.parent.iterdir()] == ['picture.png']
