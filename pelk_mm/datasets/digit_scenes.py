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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from rich.progress import track

from ..ops.checks import check_integer
from ..utils.files import write_json
from .digit_drawing import (
    Handwritings,
    Scene,
    bounding_box,
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
# fmt: off
_PALETTE = [
    (64, 64, 64), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
    (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230),
    (210, 245, 60), (250, 190, 212),
]
# fmt: on
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
#: Of each field of a recipe: least value, option and help in the command line.
_FIELDS = {
    'train_scenes': (1, '--train', 'training scenes'),
    'val_scenes': (1, '--val', 'validation scenes'),
    'scene_size': (64, '--size', 'side of a scene in pixels'),
    'train_digits': (10, '--train-digits', 'training pictures of one digit'),
    'val_digits': (10, '--val-digits', 'validation pictures of one digit'),
    'digit_size': (32, '--digit-size', 'side of such a picture in pixels'),
    'seed': (0, '--seed', 'another seed gives another data set'),
}


@dataclass(frozen=True)
class SceneRecipe:
    """What every data set of scenes is made with; sides are in pixels.

    A value that is no integer is a TypeError, one that is too small a
    ValueError.
    """

    train_scenes: int = 800
    val_scenes: int = 80
    scene_size: int = 128

    def __post_init__(self) -> None:
        for name in asdict(self):
            # NumPy's integers would not go into the JSON files.
            least = _FIELDS[name][0]
            value = check_integer(name, getattr(self, name), least)
            object.__setattr__(self, name, value)

    @property
    def pictures(self) -> int:
        """How many :meth:`write` writes."""
        return self.train_scenes + self.val_scenes

    def write(
        self, root: Path, handwritings: dict[str, Handwritings]
    ) -> Iterator[None]:
        """Write everything but the stamp; yields after each picture."""
        raise NotImplementedError


@dataclass(frozen=True)
class Recipe(SceneRecipe):
    """What a data set of digit scenes is made with; sides are in pixels.

    Scenes are for segmentation and detection, pictures of a single digit for
    classification.
    """

    train_digits: int = 4000
    # Shows nearly all handwritings kept for validation, and none twice.
    val_digits: int = 350
    digit_size: int = 64
    seed: int = 0

    @property
    def pictures(self) -> int:
        return super().pictures + self.train_digits + self.val_digits

    def write(
        self, root: Path, handwritings: dict[str, Handwritings]
    ) -> Iterator[None]:
        for part, (split, samples) in enumerate(handwritings.items()):
            coco = _empty_coco(split)
            for index in range(getattr(self, f'{split}_scenes')):
                rng = np.random.default_rng((self.seed, part, index))
                scene = draw_scene(rng, samples, self.scene_size)
                _write_scene(root, split, index + 1, scene, coco)
                yield
            path = f'annotations/instances_{split}2017.json'
            path = root / COCO_ROOT / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(coco, separators=(',', ':')))
            for index in range(getattr(self, f'{split}_digits')):
                rng = np.random.default_rng((self.seed, 2 + part, index))
                turn, digit = divmod(index, 10)
                images = samples.images[samples.labels == digit]
                handwriting = images[turn % len(images)]
                image = draw_digit(rng, handwriting, self.digit_size)
                name = f'{digit}/{digit}_{index + 1:08d}.jpg'
                _save(root / IMAGENET_ROOT / split / name, image)
                yield


def make_digit_scenes(
    root: str | Path,
    recipe: SceneRecipe | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a data set of digit scenes, or find it already there.

    A failure leaves nothing behind, as ``root`` takes its name once complete.
    Files are the same to the byte for the same recipe (None is ``Recipe()``),
    :data:`FORMAT_VERSION` and versions of NumPy, Pillow and scikit-learn.
    ``overwrite`` makes digit scenes anew, and never touches anything else.

    Raises:
        FileExistsError: If ``root`` holds digit scenes of another recipe and
            ``overwrite`` is False, an incomplete set of them, or other things.
        ImportError: If scikit-learn is not installed.
    """
    root = Path(root).expanduser().resolve()
    recipe = Recipe() if recipe is None else recipe
    if _is_made(root, recipe, overwrite):
        return root
    handwritings = load_handwritings()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        text = f'{root} cannot be made: a part of its path is a file'
        raise NotADirectoryError(f'{text}; choose another root') from error
    scratch = TemporaryDirectory(dir=root.parent, prefix=f'.{root.name}-')
    with scratch as folder:
        new = Path(folder, 'new')
        written = recipe.write(new, handwritings)
        about = dict(total=recipe.pictures, disable=not progress)
        for _ in track(written, 'Digit scenes', **about):
            pass
        files = sum(path.is_file() for path in new.rglob('*'))
        write_json(new / _STAMP, dict(_stamp(recipe), files=files))
        _put_in_place(new, root, recipe)
    return root


def _stamp(recipe: SceneRecipe) -> dict[str, int]:
    return dict(format_version=FORMAT_VERSION, **asdict(recipe))


def _is_made(root: Path, recipe: SceneRecipe, overwrite: bool) -> bool:
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
        own = {_STAMP, ADE_ROOT.split('/')[0], COCO_ROOT, IMAGENET_ROOT}
        foreign = {path.name for path in root.iterdir()} - own
        if foreign:
            raise FileExistsError(
                f'{root} also holds files that are not digit scenes and would '
                f'be lost: {", ".join(sorted(foreign))}; move them away, or '
                'choose another root'
            )
        return False
    if problem := _why_not(root, recipe):
        raise FileExistsError(
            f'{root} {problem}; choose another root, or overwrite it '
            '(overwrite=True, in the command line --overwrite)'
        )
    return True


def _why_not(root: Path, recipe: SceneRecipe) -> str | None:
    """Why the digit scenes at `root` are not those of a recipe, or whole."""
    try:
        stamp = dict(json.loads((root / _STAMP).read_text()))
        files = int(stamp.pop('files'))
    except (ValueError, TypeError, KeyError) as error:
        return f'has a {_STAMP} that cannot be read ({error!r})'
    wanted = _stamp(recipe)
    if stamp != wanted:
        differences = [
            f'{name} {stamp.get(name)} (wanted: {value})'
            for name, value in wanted.items()
            if stamp.get(name) != value
        ]
        text = ', '.join(differences) or 'unknown parameters'
        return f'holds digit scenes made otherwise: {text}'
    found = sum(path.is_file() for path in root.rglob('*')) - 1
    if found < files:
        return f'is incomplete: {found} of {files} files are left'
    return None


def _put_in_place(new: Path, root: Path, recipe: SceneRecipe) -> None:
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


def write_ade(
    root: Path, split: str, number: int, image: np.ndarray, values: np.ndarray
) -> None:
    """Write a picture and its annotation, (H, W) uint8, as ADE20K has it."""
    ade_split = {'train': 'training', 'val': 'validation'}[split]
    name = f'{ade_split}/ADE_{split}_{number:08d}'
    ade = root / ADE_ROOT
    _save(ade / 'images' / f'{name}.jpg', image)
    _save(ade / 'annotations' / f'{name}.png', values)


def _write_scene(
    root: Path, split: str, number: int, scene: Scene, coco: dict
) -> None:
    """Write a scene as ADE20K and as COCO have it."""
    # -1, the background, takes the last place.
    values = np.array([2 + label for label in scene.labels] + [1], np.uint8)
    write_ade(root, split, number, scene.image, values[scene.owners])

    name = f'{number:012d}.jpg'
    _save(root / COCO_ROOT / f'{split}2017' / name, scene.image)
    height, width = scene.owners.shape
    image = dict(id=number, file_name=name, height=height, width=width)
    coco['images'].append(image)
    for instance, label in enumerate(scene.labels):
        mask = scene.owners == instance
        left, top, right, bottom = bounding_box(mask)
        runs = {'size': list(mask.shape), 'counts': _run_lengths(mask)}
        annotation = dict(
            id=len(coco['annotations']) + 1,
            image_id=number,
            category_id=1 + label,
            bbox=[left, top, right - left, bottom - top],
            area=int(mask.sum()),
            iscrowd=0,
            segmentation=runs,
        )
        coco['annotations'].append(annotation)


def _empty_coco(split: str) -> dict:
    title = f'Digit scenes, {split}'
    categories = [
        dict(id=1 + digit, name=name, supercategory='digit')
        for digit, name in enumerate(DIGITS)
    ]
    info = {'description': title, 'version': str(FORMAT_VERSION)}
    lists = dict(licenses=[], images=[], annotations=[], categories=categories)
    return dict(info=info, **lists)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: runs of 0, 1, 0, … down the columns."""
    values = mask.ravel(order='F').astype(np.int8)
    starts = np.flatnonzero(np.diff(values, prepend=0))
    return np.diff(starts, prepend=0, append=values.size).tolist()


def _save(path: Path, image: np.ndarray) -> None:
    """Save uint8 as it is, or RGB in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    # Only JPEG knows these options.
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m pelk_mm.datasets.digit_scenes',
        description='Make a small data set of handwritten digits on textured '
        'backgrounds, in the formats of ADE20K, COCO and ImageNet.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('root', help='folder to make it in')
    for name, (_, option, meaning) in _FIELDS.items():
        number = dict(type=int, metavar='N', default=getattr(Recipe, name))
        parser.add_argument(option, dest=name, help=meaning, **number)
    overwrite_help = 'replace digit scenes that are there already'
    parser.add_argument(
        '--overwrite', action='store_true', help=overwrite_help
    )
    args = vars(parser.parse_args(argv))
    root, overwrite = args.pop('root'), args.pop('overwrite')
    wrong = ValueError, ImportError, FileExistsError, NotADirectoryError
    try:
        recipe = Recipe(**args)
        made = make_digit_scenes(root, recipe, overwrite=overwrite)
    except KeyboardInterrupt:
        print(f'\ninterrupted; {root} is as it was', file=sys.stderr)
        return 130
    except wrong as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        text = f'error: cannot write digit scenes to {root}: {error}'
        print(text, file=sys.stderr)
        return 1
    print(
        f'{made}: {recipe.train_scenes} training and {recipe.val_scenes} '
        f'validation scenes ({ADE_ROOT}, {COCO_ROOT}), {recipe.train_digits} '
        f'and {recipe.val_digits} single digits ({IMAGENET_ROOT})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
