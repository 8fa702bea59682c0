"""Mistakes in annotation files, by what the task libraries do about them.

An error is what would end the training, or let it learn from the wrong labels
without a word. A warning, with a count, is what the libraries leave out.
"""

from __future__ import annotations

import math
import os
import os.path as osp
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: EXIF orientations that swap rows and columns, and the tag that holds them.
_TURNED, _ORIENTATION = (5, 6, 7, 8), 0x0112
#: Pixels that a polygon may reach over the border, by rounding.
_SLACK = 1
#: What an image and an annotation cannot be without.
_IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


@dataclass
class Findings:
    """What is wrong, each kind once with its count and first example.

    Attributes:
        errors (dict[str, list]): Count and first example, by kind.
        warnings (dict[str, list]): Likewise.
    """

    errors: dict[str, list] = field(default_factory=dict)
    warnings: dict[str, list] = field(default_factory=dict)

    def error(self, kind: str, example: str) -> None:
        """Count an error."""
        self._count(self.errors, kind, example)

    def warn(self, kind: str, example: str) -> None:
        """Count a warning."""
        self._count(self.warnings, kind, example)

    @staticmethod
    def _count(found: dict[str, list], kind: str, example: str) -> None:
        found.setdefault(kind, [0, example])[0] += 1

    @staticmethod
    def lines(found: Mapping[str, Sequence]) -> Iterator[str]:
        """One line a kind."""
        for kind, (count, example) in found.items():
            times = f'{count} times, first' if count > 1 else 'once,'
            yield f'{kind}: {times} {example}'


def check_coco(
    content: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    folder: str | None = None,
    masks: bool = False,
    samples: int = 8,
) -> Findings:
    """Look for mistakes in annotations in the format of COCO.

    Args:
        content (Mapping[str, Any]): The file's, with ``images``,
            ``annotations`` and ``categories``.
        classes (Sequence[str], optional): Names of the categories that are
            used. Default: None, all.
        folder (str, optional): Where the images are. Default: None, they are
            not looked for.
        masks (bool): Whether masks are learned from. Default: False.
        samples (int): Of how many images the size is compared. Default: 8.

    Returns:
        Findings: As mmdetection sees them.
    """
    found = Findings()
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content[key], list) or not all(
            isinstance(item, Mapping) for item in content[key]
        ):
            found.error(
                f'{key} is not a list of objects', f'{str(content[key])[:60]}'
            )
    if found.errors:
        return found
    sizes = _check_images(content['images'], found)
    if folder is not None:
        _check_files(content['images'], folder, samples, found)
    used = _check_categories(content['categories'], classes, found)
    kept, ids = 0, set()
    for annotation in content['annotations']:
        kept += _check_annotation(annotation, sizes, used, ids, masks, found)
    if content['annotations'] and not kept and not found.errors:
        found.error('no annotation is left', 'nothing could be learned')
    return found


def _lacks(item: Mapping, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if item.get(key) is None]


def _is_number(value: object) -> bool:
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _check_images(
    images: Sequence[Mapping], found: Findings
) -> dict[Hashable, tuple[float, float]]:
    """Width and height of the good ones, by id."""
    sizes: dict[Hashable, tuple[float, float]] = {}
    for i, image in enumerate(images):
        name = f'images[{i}] ({image.get("file_name")})'
        lacks = _lacks(image, _IMAGE_KEYS)
        if lacks:
            found.error(f'an image has no {", ".join(lacks)}', name)
            continue
        size = image['width'], image['height']
        if not isinstance(image['id'], Hashable) or not isinstance(
            image['file_name'], str
        ):
            found.error(
                'an image has an id or file_name of a wrong type', name
            )
        elif not all(_is_number(side) and side >= 1 for side in size):
            found.error(
                'an image has a width or height that is not a '
                f'positive number, {size}',
                name,
            )
        elif image['id'] in sizes:
            found.error(
                'two images have the same id, and one would take the '
                "other's annotations",
                f'{name}, id {image["id"]!r}',
            )
        else:
            sizes[image['id']] = size
    return sizes


def _check_files(
    images: Sequence[Mapping], folder: str, samples: int, found: Findings
) -> None:
    """Whether images are in the folder, and some of them of the size said."""
    listings: dict[str, set[str]] = {}
    for image in images:
        if not isinstance(image.get('file_name'), str):
            continue
        path = osp.join(folder, image['file_name'])
        # One listing instead of a question a file: quick on any disk.
        parent = osp.dirname(path)
        if parent not in listings:
            listings[parent] = (
                set(os.listdir(parent)) if osp.isdir(parent) else set()
            )
        if osp.basename(path) not in listings[parent]:
            found.error('an image is not in the folder', path)
        elif samples > 0:
            samples -= 1
            said = image.get('width'), image.get('height')
            size, turned = _size(path)
            if size is None or size == said:
                continue
            hint = (
                ', which it would have without the turn in its EXIF: '
                'libraries load it turned'
                if turned and size[::-1] == said
                else ''
            )
            found.error(
                'an image has another width and height than its file',
                f'{path} has {size}, the annotations say {said}{hint}',
            )


def _size(path: str | Path) -> tuple[tuple[int, int] | None, bool]:
    """Width and height as it is loaded, and whether EXIF turns it."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.size[::-1] if turned else image.size), turned
    except Exception:
        # Whether it can be decoded is asked elsewhere.
        return None, False


def _check_categories(
    categories: Sequence[Mapping],
    classes: Sequence[str] | None,
    found: Findings,
) -> set[Hashable]:
    """Ids of the categories that are used."""
    names: dict[Hashable, str] = {}
    for i, category in enumerate(categories):
        key = category.get('id')
        if key is None or not isinstance(key, Hashable):
            found.error(
                'a category has no id',
                f'categories[{i}] ({category.get("name")})',
            )
        elif key in names:
            found.error(
                'two categories have the same id',
                f'{names[key]!r} and {category.get("name")!r}, id {key!r}',
            )
        else:
            names[key] = category.get('name')
    if classes is None:
        return set(names)
    used = [name for name in names.values() if name in classes]
    if len(used) == len(classes) and used != list(classes):
        found.warn(
            'categories are in another order than the classes of the data '
            'set; mmdetection numbers labels in the order of the file, so '
            'that pictures get wrong names',
            f'{_few(used)} instead of {_few(classes)}',
        )
    return {key for key, name in names.items() if name in classes}


def _few(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:4])) + (', …' if len(names) > 4 else '')


def _check_annotation(
    annotation: Mapping,
    sizes: Mapping[Hashable, tuple],
    categories: set[Hashable],
    ids: set[Hashable],
    masks: bool,
    found: Findings,
) -> bool:
    """Whether mmdetection would keep it; ``ids`` are those seen before."""
    name = f'annotation {annotation.get("id")!r}'
    lacks = _lacks(annotation, _ANNOTATION_KEYS)
    if lacks:
        found.error(f'an annotation has no {", ".join(lacks)}', name)
        return False
    key, image, category = (
        annotation[part] for part in ('id', 'image_id', 'category_id')
    )
    if not all(isinstance(part, Hashable) for part in (key, image, category)):
        found.error('an annotation has an id of a wrong type', name)
        return False
    if key in ids:
        found.error('two annotations have the same id', name)
        return False
    ids.add(key)
    box = annotation['bbox']
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(map(_is_number, box))
        or not _is_number(annotation['area'])
    ):
        found.error(
            'an annotation has a bbox that is not four numbers, or '
            'an area that is none',
            f'{name}, bbox {str(box)[:60]}',
        )
        return False
    if image not in sizes:
        found.warn(
            'annotations of images that are not listed are left out',
            f'{name}, image_id {image!r}',
        )
        return False
    if category not in categories:
        found.warn(
            'annotations of categories that are not used are left out',
            f'{name}, category_id {category!r}',
        )
        return False
    if annotation.get('ignore'):
        return False
    x, y, width, height = box
    columns, rows = sizes[image]
    if width < 1 or height < 1 or annotation['area'] <= 0:
        found.warn(
            'annotations with a box of less than a pixel, or no area, '
            'are left out',
            f'{name}, bbox {box}, area {annotation["area"]}',
        )
        return False
    if min(x + width, columns) <= max(x, 0) or min(y + height, rows) <= max(
        y, 0
    ):
        found.warn(
            'annotations with a box outside the image are left out',
            f'{name}, bbox {box}, image {columns} x {rows}',
        )
        return False
    if masks:
        _check_mask(
            annotation.get('segmentation'), (columns, rows), name, found
        )
    return True


def _check_mask(
    mask: Any, size: tuple[float, float], name: str, found: Findings
) -> None:
    columns, rows = size
    if not mask:
        found.error(
            'an annotation has no segmentation, but masks are to be learned',
            name,
        )
    elif isinstance(mask, Mapping):
        given = mask.get('size')
        if not isinstance(mask.get('counts'), (list, str)) or given is None:
            found.warn('masks without counts or size are ignored', name)
        elif list(given) != [rows, columns]:
            found.error(
                'a mask in run lengths has another size than its image',
                f'{name}, {given} instead of {[rows, columns]}',
            )
    elif not isinstance(mask, list) or not all(
        isinstance(polygon, list) and all(map(_is_number, polygon))
        for polygon in mask
    ):
        found.error(
            'a segmentation is neither polygons nor run lengths',
            f'{name}, {str(mask)[:60]}',
        )
    else:
        _check_polygons(mask, size, name, found)


def _check_polygons(
    polygons: Sequence[Sequence[float]],
    size: tuple[float, float],
    name: str,
    found: Findings,
) -> None:
    columns, rows = size
    good = [
        polygon
        for polygon in polygons
        if len(polygon) >= 6 and len(polygon) % 2 == 0
    ]
    if len(good) < len(polygons):
        found.warn(
            'polygons of less than three points, or of half a point, '
            'are left out',
            name,
        )
    for polygon in good:
        xs, ys = polygon[::2], polygon[1::2]
        if (
            min(xs) < -_SLACK
            or max(xs) > columns + _SLACK
            or min(ys) < -_SLACK
            or max(ys) > rows + _SLACK
        ):
            found.warn(
                'polygons reach outside the image and are cut off',
                f'{name}, image {columns} x {rows}',
            )
            return


def check_labels(
    pairs: Iterable[tuple[str, str]],
    num_classes: int | None,
    ignore_index: int = 255,
    reduce_zero_label: bool = False,
) -> Findings:
    """Look for mistakes in images of labels.

    Args:
        pairs (Iterable[tuple[str, str]]): Paths of images and of their
            labels.
        num_classes (int | None): Labels are below it; None is not known.
        ignore_index (int): The label that is left out. Default: 255.
        reduce_zero_label (bool): Whether 0 is left out too, and 1 is the
            first class. Default: False.

    Returns:
        Findings: As mmsegmentation sees them.
    """
    found = Findings()
    most = (
        None if num_classes is None else (num_classes - 1 + reduce_zero_label)
    )
    for image, label in pairs:
        try:
            with Image.open(label) as file:
                values, mode = np.asarray(file), file.mode
        except Exception:
            # Whether it can be decoded is asked elsewhere.
            continue
        if values.ndim != 2:
            found.error(
                'labels are no single numbers but colours; save '
                'the class of each pixel, in a mode as L or P',
                f'{label}, mode {mode}',
            )
            continue
        size, turned = _size(image)
        if size is not None and size != values.shape[::-1]:
            hint = (
                ': the image is turned as its EXIF says, the labels are not'
                if turned and size[::-1] == values.shape[::-1]
                else ''
            )
            found.error(
                'labels have another width and height than the image',
                f'{label} has {values.shape[::-1]}, {image} {size}{hint}',
            )
        labels = np.unique(values)
        wrong = labels[(labels < 0) | (labels > 255)]
        if most is not None and not len(wrong):
            wrong = labels[(labels > most) & (labels != ignore_index)]
        if len(wrong):
            allowed = (
                'up to 255'
                if most is None
                else (f'0 to {most}, or {ignore_index} for what is ignored')
            )
            found.error(
                f'labels are expected to be {allowed}',
                f'{label} has {_few(wrong.tolist())}',
            )
    return found
