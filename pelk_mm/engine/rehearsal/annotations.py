"""Mistakes in annotation files, by what the task libraries do about them.

An error is what would end the training, or let it learn from the wrong labels
without a word. A warning, with a count, is what the libraries leave out.
"""

from __future__ import annotations

import json
import math
import os
import os.path as osp
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.text import first_few

#: Width and height in pixels.
_Size = tuple[float, float]

#: EXIF orientations that swap rows and columns, and the tag that holds them.
_TURNED, _ORIENTATION = (5, 6, 7, 8), 0x0112
#: Pixels that a polygon may reach over the border, by rounding.
_SLACK = 1
#: What an image and an annotation cannot be without.
_IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
_KEYS = {'images', 'annotations', 'categories'}
#: Bytes of a file that is looked at; larger ones are left to the library.
_LARGEST = 64 << 20
_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


class Findings:
    """What is wrong: count and first example, by kind."""

    def __init__(self) -> None:
        self._errors: dict[str, list] = {}
        self._warnings: dict[str, list] = {}

    def error(self, kind: str, example: str) -> None:
        self._errors.setdefault(kind, [0, example])[0] += 1

    def warn(self, kind: str, example: str) -> None:
        self._warnings.setdefault(kind, [0, example])[0] += 1

    def errors(self) -> list[str]:
        """A line for each kind of error."""
        return _lines(self._errors)

    def warnings(self) -> list[str]:
        """A line for each kind of warning."""
        return _lines(self._warnings)


def _lines(found: Mapping[str, Sequence]) -> list[str]:
    lines = []
    for kind, (count, example) in found.items():
        times = f'{count} times, first' if count > 1 else 'once,'
        lines.append(f'{kind}: {times} {example}')
    return lines


def reads_coco(dataset: Any) -> bool:
    """Whether a data set of mmdetection reads annotations of objects.

    That of panoptic segments inherits from it, and reads others.
    """
    api = getattr(type(dataset), 'COCOAPI', None)
    return getattr(api, '__name__', None) == 'COCO'


def read_coco(
    path: str,
    classes: Sequence[str] | None = None,
    folder: str | None = None,
    masks: bool = False,
) -> Findings | None:
    """Look for mistakes in a file; None if it is too large or not local.

    Arguments are as for :func:`check_coco`.
    """
    if not osp.isfile(path) or osp.getsize(path) > _LARGEST:
        return None
    found = Findings()
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        found.error('it is not JSON', str(error))
        return found
    given = content.keys() if isinstance(content, dict) else set()
    missing = ', '.join(sorted(_KEYS - given))
    if missing:
        found.error(
            'it is not an annotation file of COCO', f'it has no {missing}'
        )
        return found
    folder = folder if folder and osp.isdir(folder) else None
    return check_coco(content, classes, folder, masks)


def check_coco(
    content: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    folder: str | None = None,
    masks: bool = False,
    samples: int = 8,
) -> Findings:
    """Look for mistakes in annotations in the format of COCO.

    ``classes`` are those used, None for all; images are looked for in
    ``folder``, if given, and the sizes of ``samples`` of them compared.
    """
    found = Findings()
    for key in ('images', 'annotations', 'categories'):
        items = content[key]
        if not _is_list(items, Mapping):
            found.error(f'{key} is not a list of objects', str(items)[:60])
    if found.errors():
        return found
    sizes = _check_images(content['images'], found)
    if folder is not None:
        _check_files(content['images'], folder, samples, found)
    used = _check_categories(content['categories'], classes, found)
    kept, ids = 0, set()
    for annotation in content['annotations']:
        name = f'annotation {annotation.get("id")!r}'
        error = _why_wrong(annotation, ids)
        left_out = None if error else _why_left_out(annotation, sizes, used)
        if error:
            kind, detail = error
            found.error(kind, name + detail)
        elif left_out:
            kind, detail = left_out
            found.warn(f'annotations {kind} are left out', name + detail)
        elif not annotation.get('ignore'):
            kept += 1
            if masks:
                mask = annotation.get('segmentation')
                _check_mask(mask, sizes[annotation['image_id']], name, found)
    if content['annotations'] and not kept and not found.errors():
        found.error('no annotation is left', 'nothing could be learned')
    return found


def _is_list(value: object, kind: type) -> bool:
    """Whether it is a list, and of such items alone."""
    if not isinstance(value, list):
        return False
    return all(isinstance(item, kind) for item in value)


def _lacks(item: Mapping, keys: Iterable[str]) -> str:
    return ', '.join(key for key in keys if item.get(key) is None)


def _is_number(value: object) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _check_images(
    images: Sequence[Mapping], found: Findings
) -> dict[Hashable, _Size]:
    """Width and height of the good ones, by id."""
    sizes: dict[Hashable, _Size] = {}
    for i, image in enumerate(images):
        wrong = _wrong_image(image, sizes)
        if wrong is None:
            sizes[image['id']] = image['width'], image['height']
        else:
            name = f'images[{i}] ({image.get("file_name")})'
            found.error(wrong, f'{name}, id {image.get("id")!r}')
    return sizes


def _wrong_image(image: Mapping, sizes: Mapping) -> str | None:
    """What is wrong with an image; ``sizes`` are of those before, by id."""
    lacks = _lacks(image, _IMAGE_KEYS)
    if lacks:
        return f'an image has no {lacks}'
    key, file, *size = map(image.get, _IMAGE_KEYS)
    if not isinstance(key, Hashable) or not isinstance(file, str):
        return 'an image has an id or file_name of a wrong type'
    if not all(_is_number(side) and side >= 1 for side in size):
        text = 'an image has a width or height that is not a positive number'
        return f'{text}, {tuple(size)}'
    if key in sizes:
        text = 'two images have the same id, and one would take the'
        return f"{text} other's annotations"
    return None


def _check_files(
    images: Sequence[Mapping], folder: str, samples: int, found: Findings
) -> None:
    """Whether images are in the folder, and some of them of the size said."""

    @cache
    def names(parent: str) -> set[str]:
        # One listing instead of a question a file: quick on any disk.
        return set(os.listdir(parent)) if osp.isdir(parent) else set()

    for image in images:
        if not isinstance(image.get('file_name'), str):
            continue
        path = osp.join(folder, image['file_name'])
        if osp.basename(path) not in names(osp.dirname(path)):
            found.error('an image is not in the folder', path)
        elif samples > 0:
            samples -= 1
            said = image.get('width'), image.get('height')
            size, stored = _sizes(path)
            if size in (None, said):
                continue
            text = f'{path} has {size}, the annotations say {said}'
            if stored == said:
                text += ', which it would have without the turn in its EXIF: '
                text += 'libraries load it turned'
            kind = 'an image has another width and height than its file'
            found.error(kind, text)


def _sizes(path: str) -> tuple[_Size | None, _Size | None]:
    """Width and height of an image as it is loaded, and as it is stored."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.size[::-1] if turned else image.size), image.size
    except Exception:
        # Whether it can be decoded is asked elsewhere.
        return None, None


def _check_categories(
    categories: Sequence[Mapping],
    classes: Sequence[str] | None,
    found: Findings,
) -> set[Hashable]:
    """Ids of the categories that are used."""
    names: dict[Hashable, str] = {}
    for i, category in enumerate(categories):
        key, name = category.get('id'), category.get('name')
        if key is None or not isinstance(key, Hashable):
            found.error('a category has no id', f'categories[{i}] ({name})')
        elif key in names:
            text = f'{names[key]!r} and {name!r}, id {key!r}'
            found.error('two categories have the same id', text)
        else:
            names[key] = name
    if classes is None:
        return set(names)
    known = sorted({str(category.get('name')) for category in categories})
    absent = [label for label in classes if label not in known]
    if absent:
        kind = f'no category {first_few(absent)} of the classes of the data '
        found.error(f'{kind}set', f'there are {first_few(known)}')
    used = {key: name for key, name in names.items() if name in classes}
    order = list(used.values())
    if len(order) == len(classes) and order != list(classes):
        kind = (
            'categories are in another order than the classes of the data '
            'set; mmdetection numbers labels in the order of the file, so '
            'that pictures get wrong names'
        )
        found.warn(kind, f'{first_few(order)} instead of {first_few(classes)}')
    return set(used)


def _why_wrong(
    annotation: Mapping, ids: set[Hashable]
) -> tuple[str, str] | None:
    """A kind of error, and details of it; ``ids`` are those seen before."""
    lacks = _lacks(annotation, _ANNOTATION_KEYS)
    if lacks:
        return f'an annotation has no {lacks}', ''
    key, image, category, box, area = map(annotation.get, _ANNOTATION_KEYS)
    if not _is_list([key, image, category], Hashable):
        return 'an annotation has an id of a wrong type', ''
    if key in ids:
        return 'two annotations have the same id', ''
    ids.add(key)
    if not _are_numbers(box) or len(box) != 4 or not _is_number(area):
        kind = 'a bbox that is not four numbers, or an area that is none'
        return f'an annotation has {kind}', f', bbox {str(box)[:60]}'
    return None


def _why_left_out(
    annotation: Mapping,
    sizes: Mapping[Hashable, _Size],
    categories: set[Hashable],
) -> tuple[str, str] | None:
    """Why mmdetection drops an annotation, and details, else None."""
    _, image, category, box, area = map(annotation.get, _ANNOTATION_KEYS)
    if image not in sizes:
        return 'of images that are not listed', f', image_id {image!r}'
    if category not in categories:
        return 'of categories that are not used', f', category_id {category!r}'
    if annotation.get('ignore'):
        return None
    (x, y, width, height), (columns, rows) = box, sizes[image]
    if width < 1 or height < 1 or area <= 0:
        kind = 'with a box of less than a pixel, or no area,'
        return kind, f', bbox {box}, area {area}'
    across = min(x + width, columns) > max(x, 0)
    if not across or min(y + height, rows) <= max(y, 0):
        kind = 'with a box outside the image'
        return kind, f', bbox {box}, image {columns} x {rows}'
    return None


def _check_mask(mask: Any, size: _Size, name: str, found: Findings) -> None:
    columns, rows = size
    if not mask:
        kind = 'an annotation has no segmentation, but masks are to be learned'
        found.error(kind, name)
    elif isinstance(mask, Mapping):
        given = mask.get('size')
        if not isinstance(mask.get('counts'), (list, str)) or given is None:
            found.warn('masks without counts or size are ignored', name)
        elif list(given) != [rows, columns]:
            kind = 'a mask in run lengths has another size than its image'
            found.error(kind, f'{name}, {given} instead of {[rows, columns]}')
    elif not isinstance(mask, list) or not all(map(_are_numbers, mask)):
        kind = 'a segmentation is neither polygons nor run lengths'
        found.error(kind, f'{name}, {str(mask)[:60]}')
    else:
        _check_polygons(mask, size, name, found)


def _check_polygons(
    polygons: Sequence[list], size: _Size, name: str, found: Findings
) -> None:
    whole = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
    if len(whole) < len(polygons):
        kind = 'polygons of less than three points, or of half a point,'
        found.warn(f'{kind} are left out', name)
    most = np.add(size, _SLACK)
    points = np.reshape([x for polygon in whole for x in polygon], (-1, 2))
    if (points < -_SLACK).any() or (points > most).any():
        detail = f'image {size[0]} x {size[1]}'
        kind = 'polygons reach outside the image and are cut off'
        found.warn(kind, f'{name}, {detail}')
