"""Bar scenes: the bar alone tells the class, and mmseg reads them."""

import numpy as np
import pytest

pytest.importorskip('sklearn')

from pelk_mm.datasets.bar_scenes import (
    BAR_METAINFO,
    COLOURS,
    BarRecipe,
    draw_bar_scene,
)
from pelk_mm.datasets.digit_drawing import load_handwritings
from pelk_mm.datasets.digit_scenes import ADE_ROOT, Recipe, make_digit_scenes

SMALL = BarRecipe(train_scenes=3, val_scenes=1, scene_size=64, seed=3)


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, values and where the picture is coloured."""
    rng = np.random.default_rng(seed)
    picture, values = draw_bar_scene(rng, load_handwritings()['train'], 80)
    return picture, values, np.ptp(picture, axis=2) > 0


def test_one_bar_decides_the_class_of_all_digits():
    seen = set()
    for seed in range(8):
        picture, values, bar = _draw(seed)
        assert picture.shape == (80, 80, 3) and values.dtype == np.uint8
        rows, columns = np.nonzero(bar)
        box = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert sorted(box) == [10, 26] and len(rows) == 260
        background, kind = np.unique(values)
        assert background == 1 and (values[~bar] == kind).any()
        assert (values[bar] == kind).all()
        colour = list(COLOURS.values())[kind - 2]
        assert (picture[bar] == colour).all()
        seen.add((int(kind), bool(box[0] > box[1])))
    # Both colours, upright and lying.
    assert len(seen) == 4


def test_the_rest_goes_from_black_to_white():
    picture, _, bar = _draw(0)
    rest = picture[~bar]
    assert rest.min() >= 0 and rest.max() <= 1 and np.ptp(rest) > 0.9


def test_bars_lie_anywhere():
    bars = [_draw(seed)[2] for seed in range(40)]
    assert np.mean(np.any(bars, axis=0)) > 0.6


def test_they_are_written_once_as_other_scenes(tmp_path):
    root = make_digit_scenes(tmp_path / 'bars', SMALL, progress=False)
    files = sorted(path for path in root.rglob('*') if path.is_file())
    assert len(files) == 4 * 2 + 1
    times = [path.stat().st_mtime_ns for path in files]
    make_digit_scenes(root, SMALL, progress=False)
    assert [path.stat().st_mtime_ns for path in files] == times
    for other in (BarRecipe(3, 1, 64, seed=4), Recipe(3, 1, 64, 10, 10)):
        with pytest.raises(FileExistsError, match='made otherwise'):
            make_digit_scenes(root, other, progress=False)


def test_mmsegmentation_reads_them(tmp_path):
    datasets = pytest.importorskip('mmseg.datasets')
    root = make_digit_scenes(tmp_path / 'bars', SMALL, progress=False)
    dataset = datasets.BaseSegDataset(
        data_root=str(root / ADE_ROOT),
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        metainfo=BAR_METAINFO,
        reduce_zero_label=True,
        pipeline=[
            dict(type='mmseg.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
        ],
    )
    assert len(dataset) == 3
    for sample in dataset:
        image, truth = sample['img'], sample['gt_seg_map']  # BGR
        background, kind = np.unique(truth)
        assert background == 0
        bar = np.ptp(image, axis=2) > 64
        assert bar.sum() == (64 // 3) * (64 // 8)
        assert (truth[bar] == kind).all()
        assert (image[bar].mean(0).argmax() == 2) == (kind == 1)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('scene_size', 63, 'at least 64, got 63'),
        ('val_scenes', 0, 'at least 1, got 0'),
        ('seed', -1, 'at least 0, got -1'),
    ],
)
def test_bad_recipes(field, value, message):
    with pytest.raises(ValueError, match=f'{field} must be {message}'):
        BarRecipe(**{field: value})
