"""Digit scenes: what is drawn, and that the mm libraries read it back."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

pytest.importorskip('sklearn')

from pelk_mm.datasets import digit_scenes
from pelk_mm.datasets.digit_drawing import (
    draw_digit,
    draw_glyph,
    draw_scene,
    load_handwritings,
    luma,
)
from pelk_mm.datasets.digit_scenes import (
    ADE_ROOT,
    CLASSIFICATION_METAINFO,
    COCO_ROOT,
    DETECTION_METAINFO,
    DIGITS,
    IMAGENET_ROOT,
    SEGMENTATION_METAINFO,
    Recipe,
    main,
    make_digit_scenes,
)

SMALL = Recipe(
    train_scenes=4,
    val_scenes=2,
    scene_size=96,
    train_digits=20,
    val_digits=10,
    digit_size=32,
    seed=3,
)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    """A small data set, made once."""
    return make_digit_scenes(
        tmp_path_factory.mktemp('data') / 'digits', SMALL, progress=False
    )


def _contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def _coco(root: Path, split: str):
    coco = pytest.importorskip('pycocotools.coco')
    return coco.COCO(
        str(root / COCO_ROOT / 'annotations' / f'instances_{split}2017.json')
    )


def _rng(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(seeds)


# What is drawn ------------------------------------------------------------


def test_no_handwriting_is_in_both_splits():
    handwritings = load_handwritings()
    train, val = handwritings['train'], handwritings['val']
    assert not set(train.indices) & set(val.indices)
    assert len(train) + len(val) == 1797
    # Nor is there a copy of one under another number.
    pictures = [
        {image.tobytes() for image in split.images} for split in (train, val)
    ]
    assert not pictures[0] & pictures[1]
    for split, least in ((train, 130), (val, 30)):
        assert np.bincount(split.labels, minlength=10).min() >= least


def test_pictures_of_a_split_use_its_handwritings_only(tmp_path, monkeypatch):
    handwritings = load_handwritings()
    used = {'train': set(), 'val': set()}

    def spy_scene(rng, samples, size):
        for split in used:
            if samples is handwritings[split]:
                used[split] |= {i.tobytes() for i in samples.images}
        return draw_scene(rng, samples, size)

    def spy_digit(rng, handwriting, size):
        digits.append(handwriting.tobytes())
        return draw_digit(rng, handwriting, size)

    digits = []
    monkeypatch.setattr(digit_scenes, 'draw_scene', spy_scene)
    monkeypatch.setattr(digit_scenes, 'draw_digit', spy_digit)
    make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    assert used['train'] and used['val']
    # In the order of writing: training pictures first.
    assert set(digits[: SMALL.train_digits]) <= used['train']
    assert set(digits[SMALL.train_digits :]) <= used['val']
    assert len(digits) == SMALL.train_digits + SMALL.val_digits


@pytest.mark.parametrize('size', [64, 128, 131])
def test_scenes_show_each_digit_well(size):
    samples = load_handwritings()['val']
    overlapped = 0
    for seed in range(12):
        scene = draw_scene(_rng(seed), samples, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.owners.shape == (size, size)
        assert scene.image.min() >= 0 and scene.image.max() <= 1
        assert 1 <= len(scene.labels) <= 6
        assert set(np.unique(scene.owners)) <= {*range(len(scene.labels)), -1}
        for instance in range(len(scene.labels)):
            mask = scene.owners == instance
            height = np.ptp(np.flatnonzero(mask.any(axis=1))) + 1
            assert 0.1 * size < height < 0.75 * size
            assert mask.sum() > 0.002 * size**2
            beside = _dilate(mask, size // 20) & (scene.owners == -1)
            overlapped += (
                _dilate(mask, 1) & ~mask & (scene.owners != -1)
            ).any()
            # A person must be able to read it.
            contrast = abs(
                np.median(luma(scene.image[mask]))
                - np.median(luma(scene.image[beside]))
            )
            assert contrast > 0.1
    assert overlapped > 3


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    grown = Image.fromarray(mask.astype(np.uint8)).filter(
        ImageFilter.MaxFilter(2 * radius + 1)
    )
    return np.asarray(grown).astype(bool)


def test_glyph_keeps_size_and_shape():
    samples = load_handwritings()['train']
    for size in (16, 40, 90):
        for index in range(0, 50, 7):
            stroke, pressure = draw_glyph(
                _rng(index), samples.images[index], size
            )
            assert stroke.shape == pressure.shape
            assert 0.7 * size < stroke.shape[0] < 1.35 * size
            mask = stroke >= 0.5
            for border in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
                assert border.any()
            # Bent straight and made small again, it is the sample, roughly.
            small = np.asarray(
                Image.fromarray(stroke.astype(np.float32)).resize(
                    (8, 8), Image.Resampling.BOX
                )
            )
            ink = samples.images[index]
            columns = np.flatnonzero((ink > 0.3).any(axis=0))
            cropped = np.asarray(
                Image.fromarray(
                    ink[:, columns[0] : columns[-1] + 1].astype(np.float32)
                ).resize((8, 8), Image.Resampling.BOX)
            )
            assert np.corrcoef(small.ravel(), cropped.ravel())[0, 1] > 0.4


# Files --------------------------------------------------------------------


def test_same_recipe_gives_the_same_bytes(scenes, tmp_path):
    again = make_digit_scenes(tmp_path / 'again', SMALL, progress=False)
    assert _contents(again) == _contents(scenes)


def test_another_seed_gives_other_pictures(scenes, tmp_path):
    other = make_digit_scenes(
        tmp_path / 'other',
        Recipe(**{**SMALL.__dict__, 'seed': 4}),
        progress=False,
    )
    before, after = _contents(scenes), _contents(other)
    assert before.keys() == after.keys()
    pictures = [name for name in before if name.endswith(('.jpg', '.png'))]
    assert not any(before[name] == after[name] for name in pictures)


def test_a_larger_set_begins_with_the_smaller_one(scenes, tmp_path):
    larger = make_digit_scenes(
        tmp_path / 'larger',
        Recipe(**{**SMALL.__dict__, 'train_scenes': 5, 'train_digits': 23}),
        progress=False,
    )
    before, after = _contents(scenes), _contents(larger)
    for name, digest in before.items():
        if name.endswith(('.jpg', '.png')) or 'val2017' in name:
            assert after[name] == digest, name
    assert len(after) == len(before) + 3 + 3


def test_folders(scenes):
    contents = _contents(scenes)
    assert (
        'ade/ADEChallengeData2016/images/training/ADE_train_00000004.jpg'
        in contents
    )
    assert (
        'ade/ADEChallengeData2016/annotations/validation/'
        'ADE_val_00000002.png' in contents
    )
    assert 'coco/train2017/000000000004.jpg' in contents
    assert 'coco/annotations/instances_val2017.json' in contents
    assert 'imagenet/train/9/9_00000020.jpg' in contents
    # Two pictures and one annotation a scene, the digits, two annotation
    # files of COCO and the stamp; nothing hidden is left over beside it.
    assert len(contents) == 6 * 3 + 30 + 3
    assert os.listdir(scenes.parent) == ['digits']
    # Others may read it, as any folder that is made here.
    fresh = scenes / 'fresh'
    fresh.mkdir()
    assert scenes.stat().st_mode == fresh.stat().st_mode
    fresh.rmdir()


def test_coco_masks_agree_with_the_index_pictures(scenes):
    for split, ade_split, count in (
        ('train', 'training', 4),
        ('val', 'validation', 2),
    ):
        coco = _coco(scenes, split)
        assert len(coco.imgs) == count
        for image in coco.loadImgs(coco.getImgIds()):
            name = f'ADE_{split}_{image["id"]:08d}'
            folder = scenes / ADE_ROOT
            index = Image.open(
                folder / 'annotations' / ade_split / f'{name}.png'
            )
            assert index.mode == 'L'
            index = np.asarray(index)
            rebuilt = np.ones_like(index)
            covered = np.zeros(index.shape, int)
            annotations = coco.loadAnns(coco.getAnnIds(image['id']))
            assert annotations
            for annotation in annotations:
                mask = coco.annToMask(annotation).astype(bool)
                rebuilt[mask] = annotation['category_id'] + 1
                covered += mask
                assert annotation['area'] == mask.sum()
                assert annotation['iscrowd'] == 0
                rows, columns = np.nonzero(mask)
                assert annotation['bbox'] == [
                    columns.min(),
                    rows.min(),
                    np.ptp(columns) + 1,
                    np.ptp(rows) + 1,
                ]
            assert covered.max() == 1
            np.testing.assert_array_equal(rebuilt, index)
            # The same scene, to the byte.
            assert (
                folder / 'images' / ade_split / f'{name}.jpg'
            ).read_bytes() == (
                scenes / COCO_ROOT / f'{split}2017' / image['file_name']
            ).read_bytes()


def test_run_lengths_begin_with_zeros():
    mask = np.array([[1, 0], [1, 1], [0, 1]], bool)
    assert digit_scenes._run_lengths(mask) == [0, 2, 2, 2]
    assert digit_scenes._run_lengths(~mask) == [2, 2, 2]
    assert digit_scenes._run_lengths(np.zeros((2, 3), bool)) == [6]
    assert digit_scenes._run_lengths(np.ones((2, 3), bool)) == [0, 6]


def test_mmsegmentation_reads_it(scenes):
    datasets = pytest.importorskip('mmseg.datasets')
    dataset = datasets.BaseSegDataset(
        data_root=str(scenes / ADE_ROOT),
        data_prefix={
            'img_path': 'images/training',
            'seg_map_path': 'annotations/training',
        },
        metainfo=SEGMENTATION_METAINFO,
        reduce_zero_label=True,
        pipeline=[
            {'type': 'mmseg.LoadImageFromFile'},
            {'type': 'mmseg.LoadAnnotations', 'reduce_zero_label': True},
        ],
    )
    assert len(dataset) == 4
    assert dataset.metainfo['classes'] == ('background', *DIGITS)
    assert len(dataset.metainfo['palette']) == 11
    coco = _coco(scenes, 'train')
    for number, sample in enumerate(dataset, 1):
        assert sample['img'].shape == (96, 96, 3)
        shown = {coco.anns[i]['category_id'] for i in coco.getAnnIds([number])}
        assert set(np.unique(sample['gt_seg_map'])) == {0} | shown


def test_mmdetection_reads_it(scenes):
    datasets = pytest.importorskip('mmdet.datasets')
    dataset = datasets.CocoDataset(
        data_root=str(scenes / COCO_ROOT),
        ann_file='annotations/instances_train2017.json',
        data_prefix={'img': 'train2017/'},
        metainfo=DETECTION_METAINFO,
        filter_cfg={'filter_empty_gt': True, 'min_size': 32},
        pipeline=[
            {'type': 'mmdet.LoadImageFromFile'},
            {
                'type': 'mmdet.LoadAnnotations',
                'with_bbox': True,
                'with_mask': True,
            },
        ],
    )
    assert len(dataset) == 4
    coco = _coco(scenes, 'train')
    for sample in dataset:
        assert sample['img'].shape == (96, 96, 3)
        annotations = coco.loadAnns(coco.getAnnIds(sample['img_id']))
        assert not any(sample['gt_ignore_flags'])
        # A class index is the digit.
        assert sample['gt_bboxes_labels'].tolist() == [
            annotation['category_id'] - 1 for annotation in annotations
        ]
        np.testing.assert_array_equal(
            sample['gt_masks'].masks,
            [coco.annToMask(annotation) for annotation in annotations],
        )


def test_mmpretrain_reads_it(scenes):
    datasets = pytest.importorskip('mmpretrain.datasets')
    for split, count in (('train', 20), ('val', 10)):
        dataset = datasets.CustomDataset(
            data_root=str(scenes / IMAGENET_ROOT),
            data_prefix=split,
            metainfo=CLASSIFICATION_METAINFO,
            pipeline=[{'type': 'mmpretrain.LoadImageFromFile'}],
        )
        assert len(dataset) == count
        assert tuple(dataset.metainfo['classes']) == DIGITS
        assert (
            np.bincount(dataset.get_gt_labels()).tolist() == [count // 10] * 10
        )
        for sample in dataset:
            assert sample['img'].shape == (32, 32, 3)
            folder = Path(sample['img_path']).parent.name
            assert sample['gt_label'] == int(folder)


# Reuse and errors ---------------------------------------------------------


def test_a_complete_set_is_reused(tmp_path, monkeypatch):
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    monkeypatch.setattr(
        digit_scenes, 'load_handwritings', lambda: pytest.fail('made anew')
    )
    assert make_digit_scenes(root, SMALL) == root


def test_another_recipe_is_an_error_unless_overwritten(tmp_path):
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    before = _contents(root)
    other = Recipe(**{**SMALL.__dict__, 'seed': 8, 'val_scenes': 1})
    with pytest.raises(
        FileExistsError,
        match=(
            r'val_scenes 2 \(wanted: 1\), seed 3 \(wanted: 8\); choose '
            'another root, or overwrite'
        ),
    ):
        make_digit_scenes(root, other, progress=False)
    assert _contents(root) == before
    make_digit_scenes(root, other, overwrite=True, progress=False)
    assert len(_contents(root)) == len(before) - 3
    assert os.listdir(tmp_path) == ['digits']


def test_a_new_format_version_is_an_error(tmp_path, monkeypatch):
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    monkeypatch.setattr(digit_scenes, 'FORMAT_VERSION', 99)
    with pytest.raises(FileExistsError, match=r'\(wanted: 99\)'):
        make_digit_scenes(root, SMALL)


def test_a_set_with_missing_files_is_an_error(tmp_path):
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    total = len(_contents(root))
    next((root / IMAGENET_ROOT).rglob('*.jpg')).unlink()
    with pytest.raises(
        FileExistsError, match=f'{total - 2} of {total - 1} files'
    ):
        make_digit_scenes(root, SMALL)
    make_digit_scenes(root, SMALL, overwrite=True, progress=False)
    assert len(_contents(root)) == total


@pytest.mark.parametrize('stamp', ['', '[]', '{}', '{"files": null}', '3'])
def test_a_broken_stamp_is_an_error(tmp_path, stamp):
    (tmp_path / 'digit_scenes.json').write_text(stamp)
    with pytest.raises(FileExistsError, match='cannot be read'):
        make_digit_scenes(tmp_path, SMALL)


@pytest.mark.parametrize('overwrite', [False, True])
def test_other_files_are_never_touched(tmp_path, overwrite):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(FileExistsError, match='not a folder of digit scenes'):
        make_digit_scenes(tmp_path, SMALL, overwrite=overwrite)
    assert os.listdir(tmp_path) == ['thesis.tex']


def test_overwriting_spares_other_files_among_the_scenes(tmp_path):
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    (root / 'thesis.tex').write_text('mine')
    with pytest.raises(FileExistsError, match=r'lost: thesis\.tex'):
        make_digit_scenes(root, SMALL, overwrite=True, progress=False)
    assert (root / 'thesis.tex').read_text() == 'mine'


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'digits').mkdir()
    root = make_digit_scenes(tmp_path / 'digits', SMALL, progress=False)
    assert len(_contents(root)) > 40


@pytest.mark.parametrize('exists', [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch, exists):
    root = tmp_path / 'digits'
    if exists:
        make_digit_scenes(root, SMALL, progress=False)
    before = _contents(tmp_path)
    drawn = []

    def interrupted(rng, handwriting, size):
        drawn.append(size)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return draw_digit(rng, handwriting, size)

    monkeypatch.setattr(digit_scenes, 'draw_digit', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digit_scenes(root, SMALL, overwrite=True, progress=False)
    assert _contents(tmp_path) == before
    assert os.listdir(tmp_path) == (['digits'] if exists else [])


def test_two_at_once_agree(tmp_path, monkeypatch):
    root = tmp_path / 'digits'
    finished = []

    def slower(*args):
        if not finished:
            finished.append(True)
            make_digit_scenes(root, SMALL, progress=False)
        return draw_scene(*args)

    monkeypatch.setattr(digit_scenes, 'draw_scene', slower)
    # Another one finishes while this one is drawing.
    assert make_digit_scenes(root, SMALL, progress=False) == root
    assert os.listdir(tmp_path) == ['digits']
    make_digit_scenes(root, SMALL)


def test_missing_scikit_learn_says_what_to_install(tmp_path, monkeypatch):
    load_handwritings.cache_clear()
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        make_digit_scenes(tmp_path / 'new' / 'digits', SMALL)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('name', 'value', 'error', 'message'),
    [
        ('scene_size', 63, ValueError, 'at least 64, got 63'),
        ('digit_size', 31, ValueError, 'at least 32, got 31'),
        ('train_scenes', 0, ValueError, 'at least 1, got 0'),
        ('val_digits', 9, ValueError, 'at least 10, got 9'),
        ('seed', -1, ValueError, 'at least 0, got -1'),
        ('seed', 0.5, TypeError, r'an integer, got 0\.5 of type float'),
        ('val_scenes', True, TypeError, 'an integer, got True of type bool'),
    ],
)
def test_bad_recipes(name, value, error, message):
    with pytest.raises(error, match=f'{name} must be {message}'):
        Recipe(**{name: value})


def test_numpy_integers_are_integers(scenes):
    recipe = Recipe(
        **{name: np.int64(value) for name, value in SMALL.__dict__.items()}
    )
    assert make_digit_scenes(scenes, recipe) == scenes


# Command line -------------------------------------------------------------


def _arguments(root: Path) -> list[str]:
    return [
        str(root),
        '--train',
        '4',
        '--val',
        '2',
        '--size',
        '96',
        '--train-digits',
        '20',
        '--val-digits',
        '10',
        '--digit-size',
        '32',
        '--seed',
        '3',
    ]


@pytest.mark.skipif(
    torch.__version__ < '2.6', reason='this torch warns of mmengine'
)
def test_command_line(scenes, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'pelk_mm.datasets.digit_scenes',
            *_arguments(tmp_path / 'digits'),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert 'Warning' not in result.stderr
    assert '4 training and 2 validation scenes' in result.stdout
    # Another process makes the same bytes.
    assert _contents(tmp_path / 'digits') == _contents(scenes)


def test_command_line_errors(scenes, tmp_path, capsys):
    assert main([str(scenes), '--seed', '9']) == 2
    assert 'seed 3 (wanted: 9)' in capsys.readouterr().err
    assert main([str(tmp_path / 'new'), '--size', '8']) == 2
    assert 'error: scene_size must be at least 64' in capsys.readouterr().err
    (tmp_path / 'file').write_text('')
    assert main(_arguments(tmp_path / 'file' / 'below')) == 2
    assert 'part of its path is a file' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['file']


def test_command_line_when_nothing_can_be_written(
    tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', full)
    assert main(_arguments(tmp_path / 'digits')) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_command_line_interrupted(tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digit_scenes, 'draw_scene', interrupted)
    assert main(_arguments(tmp_path / 'digits')) == 130
    assert 'interrupted' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_stamp_names_the_recipe(scenes):
    stamp = json.loads((scenes / 'digit_scenes.json').read_text())
    assert stamp.pop('files') == len(_contents(scenes)) - 1
    assert stamp.pop('format_version') == digit_scenes.FORMAT_VERSION
    assert stamp == SMALL.__dict__
