"""Digit scenes: a small data set for three tasks, in three real formats.

Real handwritten digits, those that come with scikit-learn, are placed at
random sizes and places on textured backgrounds, and written as the data sets
that mmsegmentation, mmdetection and mmpretrain read every day::

    ROOT/
      digit_scenes.json                      what it was made with
      ade/ADEChallengeData2016/              as ADE20K
        images/{training,validation}/ADE_{train,val}_00000001.jpg
        annotations/{training,validation}/ADE_{train,val}_00000001.png
      coco/                                  as COCO, the same scenes
        annotations/instances_{train,val}2017.json
        {train,val}2017/000000000001.jpg
      imagenet/{train,val}/7/7_00000018.jpg  as ImageNet, one digit each

An annotation of the ADE20K form holds 1 for the background, 2 + d for the
digit d and never 0, so that with ``reduce_zero_label=True`` there are the 11
classes of :data:`SEGMENTATION_METAINFO` and no ignored pixel. COCO's category
of the digit d is 1 + d.

No handwriting appears both in a training and in a validation picture. Each
picture depends on the seed and on its own number alone: of two data sets that
differ in their counts, the smaller one is the beginning of the larger one.

From the command line::

    python -m pelk_mm.datasets.digit_scenes data/digit_scenes
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from rich.progress import track

from .digit_drawing import (
    Handwritings,
    Scene,
    draw_digit,
    draw_scene,
    load_handwritings,
)

# To be raised whenever the same recipe gives other files.
FORMAT_VERSION = 2

ADE_ROOT = 'ade/ADEChallengeData2016'
COCO_ROOT = 'coco'
IMAGENET_ROOT = 'imagenet'

DIGITS = tuple('0123456789')
_PALETTE = [
    (64, 64, 64),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
]
#: ``metainfo`` of mmsegmentation's ``BaseSegDataset``.
SEGMENTATION_METAINFO = {
    'classes': ('background', *DIGITS),
    'palette': _PALETTE,
}
#: ``metainfo`` of mmdetection's ``CocoDataset``.
DETECTION_METAINFO = {'classes': DIGITS, 'palette': _PALETTE[1:]}
#: ``metainfo`` of mmpretrain's ``CustomDataset``.
CLASSIFICATION_METAINFO = {'classes': DIGITS}

_STAMP = 'digit_scenes.json'
# The same split is called differently in each format.
_ADE_SPLITS = {'train': 'training', 'val': 'validation'}
_COCO_SPLITS = {'train': 'train2017', 'val': 'val2017'}
_MINIMUM = {
    'train_scenes': 1,
    'val_scenes': 1,
    'scene_size': 64,
    'train_digits': 10,
    'val_digits': 10,
    'digit_size': 32,
    'seed': 0,
}


@dataclass(frozen=True)
class Recipe:
    """What a data set of digit scenes is made with.

    Args:
        train_scenes (int): Training scenes, for segmentation and detection.
            Default: 800.
        val_scenes (int): Validation scenes. Default: 80.
        scene_size (int): Side of a scene in pixels, at least 64; digits are
            3/16 to 9/16 of it high. Default: 128.
        train_digits (int): Training pictures of a single digit, for
            classification, at least 10. Default: 4000.
        val_digits (int): Validation pictures of a single digit, at least 10.
            Default: 350, which shows nearly each of the handwritings kept
            for validation, and none twice.
        digit_size (int): Side of such a picture in pixels, at least 32.
            Default: 64.
        seed (int): Default: 0.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is too small.
    """

    train_scenes: int = 800
    val_scenes: int = 80
    scene_size: int = 128
    train_digits: int = 4000
    val_digits: int = 350
    digit_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(
                    f'{field.name} must be an integer, got {value!r} of type '
                    f'{type(value).__name__}'
                )
            if value < _MINIMUM[field.name]:
                raise ValueError(
                    f'{field.name} must be at least {_MINIMUM[field.name]}, '
                    f'got {value}'
                )
            # NumPy's integers would not go into the JSON files.
            object.__setattr__(self, field.name, int(value))


def make_digit_scenes(
    root: str | Path,
    recipe: Recipe | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a data set of digit scenes, or find it already there.

    The files are made in a folder beside ``root`` which takes its name once
    it is complete, so that ``root`` never holds half a data set. They are the
    same to the byte for the same recipe, :data:`FORMAT_VERSION` and versions
    of NumPy, Pillow and scikit-learn.

    Args:
        root (str | Path): Folder of the data set; its parents are made if
            need be.
        recipe (Recipe, optional): What to make. Default: ``Recipe()``.
        overwrite (bool): Whether to make anew digit scenes that stand at
            ``root`` already. Anything else that stands there is never
            touched. Default: False.
        progress (bool): Whether to show a progress bar. Default: True.

    Returns:
        Path: The absolute path of ``root``.

    Raises:
        FileExistsError: If ``root`` holds digit scenes of another recipe and
            ``overwrite`` is False, an incomplete set of them, or something
            else.
        ImportError: If scikit-learn is not installed.
        OSError: If the files cannot be written; nothing is left behind.
    """
    root = Path(root).expanduser().resolve()
    recipe = Recipe() if recipe is None else recipe
    if _is_made(root, recipe, overwrite):
        return root
    pictures = list(_plan(recipe, load_handwritings()))
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f'{root} cannot be made: a part of its path is a file; choose '
            'another root'
        ) from error
    with TemporaryDirectory(
        dir=root.parent, prefix=f'.{root.name}-'
    ) as scratch:
        new = Path(scratch, 'new')
        coco = {split: _empty_coco(split) for split in _COCO_SPLITS}
        for write in track(pictures, 'Digit scenes', disable=not progress):
            write(new, coco)
        for split, content in coco.items():
            _write(
                new
                / COCO_ROOT
                / 'annotations'
                / f'instances_{_COCO_SPLITS[split]}.json',
                json.dumps(content, separators=(',', ':')),
            )
        files = sum(path.is_file() for path in new.rglob('*'))
        stamp = dict(_stamp(recipe), files=files)
        _write(new / _STAMP, json.dumps(stamp, indent=2) + '\n')
        _put_in_place(new, root, recipe)
    return root


def _stamp(recipe: Recipe) -> dict[str, int]:
    return dict(format_version=FORMAT_VERSION, **asdict(recipe))


def _is_made(root: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Whether the data set is at `root`; an error if another thing is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    stamp_file = root / _STAMP
    if not stamp_file.is_file():
        raise FileExistsError(
            f'{root} exists and is not a folder of digit scenes: it has no '
            f'{_STAMP}; choose another root'
        )
    if overwrite:
        own = {
            _STAMP,
            *(
                path.split('/')[0]
                for path in (ADE_ROOT, COCO_ROOT, IMAGENET_ROOT)
            ),
        }
        foreign = sorted({path.name for path in root.iterdir()} - own)
        if foreign:
            raise FileExistsError(
                f'{root} also holds files that are not digit scenes and would '
                f'be lost: {", ".join(foreign)}; move them away, or choose '
                'another root'
            )
        return False
    advice = (
        'choose another root, or overwrite it (overwrite=True, in the '
        'command line --overwrite)'
    )
    try:
        stamp = dict(json.loads(stamp_file.read_text()))
        files = int(stamp.pop('files'))
    except (ValueError, TypeError, KeyError) as error:
        raise FileExistsError(
            f'{stamp_file} cannot be read as the mark of a set of digit '
            f'scenes; {advice}'
        ) from error
    wanted = _stamp(recipe)
    if stamp != wanted:
        differences = ', '.join(
            f'{name} {stamp.get(name)} (wanted: {value})'
            for name, value in wanted.items()
            if stamp.get(name) != value
        )
        raise FileExistsError(
            f'{root} holds digit scenes made otherwise: '
            f'{differences or "unknown parameters"}; {advice}'
        )
    found = sum(path.is_file() for path in root.rglob('*')) - 1
    if found < files:
        raise FileExistsError(
            f'{root} is incomplete: {found} of {files} files are left; '
            f'{advice}'
        )
    return True


def _put_in_place(new: Path, root: Path, recipe: Recipe) -> None:
    old = new.with_name('old')
    if root.exists() and any(root.iterdir()):
        root.rename(old)
    try:
        new.rename(root)
    except OSError:
        if old.exists():
            old.rename(root)
            raise
        # Perhaps another process was quicker, and made the same.
        if not _is_made(root, recipe, overwrite=False):
            raise


_Writer = Callable[[Path, dict[str, dict]], None]


def _plan(
    recipe: Recipe, handwritings: dict[str, Handwritings]
) -> Iterator[_Writer]:
    """One function a picture: each draws it and writes its files."""
    for part, split in enumerate(('train', 'val')):
        samples = handwritings[split]
        for index in range(getattr(recipe, f'{split}_scenes')):
            yield partial(
                _write_scene,
                split,
                index,
                samples,
                recipe.scene_size,
                (recipe.seed, part, index),
            )
        by_digit = [
            samples.images[samples.labels == digit] for digit in range(10)
        ]
        for index in range(getattr(recipe, f'{split}_digits')):
            turn, digit = divmod(index, 10)
            images = by_digit[digit]
            yield partial(
                _write_digit,
                split,
                index,
                digit,
                images[turn % len(images)],
                recipe.digit_size,
                (recipe.seed, 2 + part, index),
            )


def _write_scene(
    split: str,
    index: int,
    samples: Handwritings,
    size: int,
    seeds: tuple[int, ...],
    root: Path,
    coco: dict[str, dict],
) -> None:
    scene = draw_scene(np.random.default_rng(seeds), samples, size)
    number = index + 1

    ade = root / ADE_ROOT
    name = f'ADE_{split}_{number:08d}'
    picture = ade / 'images' / _ADE_SPLITS[split] / f'{name}.jpg'
    _write_jpeg(picture, scene.image)
    # -1, the background, takes the last place.
    values = np.array([2 + label for label in scene.labels] + [1], np.uint8)
    _save(
        Image.fromarray(values[scene.owners]),
        ade / 'annotations' / _ADE_SPLITS[split] / f'{name}.png',
    )

    name = f'{number:012d}.jpg'
    _write(root / COCO_ROOT / _COCO_SPLITS[split] / name, picture.read_bytes())
    content = coco[split]
    content['images'].append(
        {'id': number, 'file_name': name, 'height': size, 'width': size}
    )
    content['annotations'] += _annotations(
        scene, number, len(content['annotations']) + 1
    )


def _write_digit(
    split: str,
    index: int,
    digit: int,
    handwriting: np.ndarray,
    size: int,
    seeds: tuple[int, ...],
    root: Path,
    coco: dict[str, dict],
) -> None:
    image = draw_digit(np.random.default_rng(seeds), handwriting, size)
    label = DIGITS[digit]
    _write_jpeg(
        root / IMAGENET_ROOT / split / label / f'{label}_{index + 1:08d}.jpg',
        image,
    )


def _empty_coco(split: str) -> dict:
    return {
        'info': {
            'description': f'Digit scenes, {split}',
            'version': str(FORMAT_VERSION),
        },
        'licenses': [],
        'images': [],
        'annotations': [],
        'categories': [
            {'id': 1 + digit, 'name': name, 'supercategory': 'digit'}
            for digit, name in enumerate(DIGITS)
        ],
    }


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """COCO's annotations of a scene, by what is visible of each digit."""
    annotations = []
    for instance, label in enumerate(scene.labels):
        mask = scene.owners == instance
        rows = np.flatnonzero(mask.any(axis=1))
        columns = np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
        annotations.append(
            {
                'id': first_id + instance,
                'image_id': image_id,
                'category_id': 1 + label,
                'bbox': [left, top, right - left, bottom - top],
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': {
                    'size': list(mask.shape),
                    'counts': _run_lengths(mask),
                },
            }
        )
    return annotations


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: runs of 0, 1, 0, … down the columns."""
    values = mask.ravel(order='F').astype(np.int8)
    starts = np.flatnonzero(np.diff(values, prepend=0))
    return np.diff(starts, prepend=0, append=values.size).tolist()


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    pixels = np.rint(image * 255).astype(np.uint8)
    _save(Image.fromarray(pixels), path, quality=95, subsampling=0)


def _save(image: Image.Image, path: Path, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m pelk_mm.datasets.digit_scenes',
        description='Make a small data set of handwritten digits on textured '
        'backgrounds, in the formats of ADE20K, COCO and ImageNet.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Recipe()
    parser.add_argument('root', help='folder to make it in')
    for option, name, meaning in (
        ('--train', 'train_scenes', 'training scenes'),
        ('--val', 'val_scenes', 'validation scenes'),
        ('--size', 'scene_size', 'side of a scene in pixels'),
        ('--train-digits', 'train_digits', 'training pictures of one digit'),
        ('--val-digits', 'val_digits', 'validation pictures of one digit'),
        (
            '--digit-size',
            'digit_size',
            'side of a picture of one digit in pixels',
        ),
        ('--seed', 'seed', 'another seed gives another data set'),
    ):
        parser.add_argument(
            option,
            dest=name,
            type=int,
            metavar='N',
            default=getattr(default, name),
            help=meaning,
        )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace digit scenes that are there already',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    args = _parse_args(argv)
    try:
        recipe = Recipe(
            **{
                field.name: getattr(args, field.name)
                for field in fields(Recipe)
            }
        )
        root = make_digit_scenes(args.root, recipe, overwrite=args.overwrite)
    except KeyboardInterrupt:
        print(f'\ninterrupted; {args.root} is as it was', file=sys.stderr)
        return 130
    except (
        ValueError,
        ImportError,
        FileExistsError,
        NotADirectoryError,
    ) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f'error: cannot write digit scenes to {args.root}: {error}',
            file=sys.stderr,
        )
        return 1
    print(
        f'{root}: {recipe.train_scenes} training and {recipe.val_scenes} '
        f'validation scenes ({ADE_ROOT}, {COCO_ROOT}), '
        f'{recipe.train_digits} and {recipe.val_digits} single digits '
        f'({IMAGENET_ROOT})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
