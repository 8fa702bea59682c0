"""What trains without a crash, and wrongly, as samples of the data show it.

An error is what is certain to be wrong, a warning what is likely to be.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn

from ...utils.sampling import evenly
from ...utils.text import first_few
from .annotations import Findings, read_coco, reads_coco
from .batches import innermost
from .heads import heads

#: Files whose presence is looked at in each data set.
_FILES = 1000
#: With no more classes than these, one that never occurs is told.
_FEW = 4


def look_at_dataset(dataset: Any) -> tuple[list[str], list[str]]:
    """Errors and warnings of a data set, as the library has built it."""
    errors: list[str] = []
    warnings: list[str] = []
    parts = innermost(dataset)
    for part in parts:
        wrong, doubtful = _classes(part)
        warnings += doubtful
        found = None if wrong else _annotations(part)
        if found is not None:
            path = part.ann_file
            wrong += [f'{path}: {line}' for line in found.errors()]
            warnings += [f'{path}: {line}' for line in found.warnings()]
        errors += wrong or _missing(part)
        errors += [] if len(part) else [why_empty(part)]
    return errors + disagreeing(parts), warnings


def look_at_samples(
    samples: Sequence[BaseDataElement], dataset: Any, model: nn.Module
) -> tuple[list[str], list[str]]:
    """Errors and warnings of what the pipeline returned of labels."""
    errors: list[str] = []
    warnings: list[str] = []
    # mmdetection's ConcatDataset has a list, of parts that differ.
    metainfo = _metainfo(innermost(dataset)[0])
    for look in (_images, _objects, _maps):
        wrong, doubtful = look(samples, metainfo, model)
        errors += wrong
        warnings += doubtful
    return errors, warnings


def _name(part: Any) -> str:
    where = getattr(part, 'ann_file', None) or getattr(part, 'data_root', '')
    kind = type(part).__name__
    return f'{kind} ({where})' if where else kind


def _metainfo(part: Any) -> dict[str, Any]:
    return getattr(part, 'metainfo', None) or {}


def why_empty(part: Any) -> str:
    """Why a data set has no samples."""
    wanted = getattr(part, 'img_suffix', None)
    images = (getattr(part, 'data_prefix', None) or {}).get('img_path')
    why = 'nothing is left of its images after filtering'
    if isinstance(wanted, str) and images and not getattr(part, 'ann_file', 0):
        why = f'no file in {images} ends in {wanted}, its img_suffix'
    elif not getattr(part, 'cat_ids', True):
        classes = _metainfo(part).get('classes', ())
        why = f'no category of the file is one of its classes, {classes}'
    return f'{_name(part)} has no samples: {why}'


def _missing(part: Any) -> list[str]:
    """Images and labels that are not where the data set says."""
    if not hasattr(part, 'get_data_info') or getattr(
        part, 'backend_args', None
    ):
        return []
    absent = []
    for place in evenly(range(len(part)), _FILES):
        info = part.get_data_info(int(place))
        for key in ('img_path', 'seg_map_path'):
            path = info.get(key)
            if not isinstance(path, str) or '://' in path:
                continue
            labels = key == 'seg_map_path'
            if not osp.exists(path) and (not labels or _loads(part)):
                absent.append(path)
    if not absent:
        return []
    return [f'{_name(part)}: there is no {first_few(absent)}']


def _steps(part: Any) -> list[Any]:
    steps = getattr(getattr(part, 'pipeline', None), 'transforms', ())
    return list(steps)


def _loads(part: Any) -> bool:
    """Whether its pipeline loads maps of labels."""
    return any(getattr(step, 'with_seg', False) for step in _steps(part))


def _classes(part: Any) -> tuple[list[str], list[str]]:
    classes = _metainfo(part).get('classes')
    if isinstance(classes, str):
        return [
            f'{_name(part)}: classes={classes!r} is a str, whose letters '
            f'would be the classes: write classes=({classes!r}, ), with a '
            f'comma; on the command line [{classes}]'
        ], []
    if not isinstance(classes, (list, tuple)):
        return [], []
    names = [str(name) for name in classes]
    errors, warnings = [], []
    letters = len(names) > 1 and all(len(name) == 1 for name in names)
    if letters and ''.join(names).isalpha() and names != sorted(names):
        warnings.append(
            f'{_name(part)}: its classes are single letters, {names}; is '
            f'{"".join(names)!r} the name of one?'
        )
    # Categories of the file that have names of classes, in its order.
    ids = getattr(part, 'cat_ids', None)
    if isinstance(ids, list) and names and len(ids) > len(names):
        errors.append(
            f'{_name(part)}: {len(ids)} categories (ids {first_few(ids)}) '
            f'have the names of its {len(names)} classes '
            f'({first_few(names)}): a category is listed twice, and labels '
            'are numbers that no class has. Leave one of them in the file, '
            'and give it to all annotations'
        )
    elif isinstance(ids, list) and ids and len(ids) < len(names):
        warnings.append(
            f'{_name(part)}: the file has {len(ids)} of the {len(names)} '
            'classes, and labels are numbered by the file: compare the names '
            f'of its categories with {first_few(names)}'
        )
    return errors, warnings


def _annotations(part: Any) -> Findings | None:
    """Of mmdetection's COCO: what it leaves out, or reads without a word."""
    path = getattr(part, 'ann_file', None)
    if not reads_coco(part) or not isinstance(path, str):
        return None
    masks = any(getattr(step, 'with_mask', False) for step in _steps(part))
    folder = (getattr(part, 'data_prefix', None) or {}).get('img')
    return read_coco(path, _metainfo(part).get('classes'), folder, masks)


def disagreeing(parts: Sequence[Any]) -> list[str]:
    """Parts whose labels of one number are of different classes."""
    known = []
    for part in parts:
        classes = _metainfo(part).get('classes')
        if isinstance(classes, (list, tuple)):
            known.append((_name(part), list(classes)))
    for (one, these), (other, those) in combinations(known, 2):
        pairs = zip(these, those)  # noqa: B905, one may have more
        different = [i for i, (a, b) in enumerate(pairs) if a != b]
        if different:
            i = different[0]
            return [
                f'label {i} is {these[i]!r} in {one} and {those[i]!r} in '
                f'{other}: give all parts the same metainfo.classes'
            ]
    return []


def _images(
    samples: Sequence[BaseDataElement], metainfo: dict, model: nn.Module
) -> tuple[list[str], list[str]]:
    """Classification: labels of whole images."""
    labels = [
        (int(label), _file(sample))
        for sample in samples
        if isinstance(getattr(sample, 'gt_label', None), Tensor)
        for label in sample.gt_label.flatten()
    ]
    found = heads(model, ('head',))
    if not labels or not found:
        return [], []
    where, head = next(iter(found.items()))
    errors = _beyond(labels, where, head.num_classes)
    return errors, [] if errors else _other_count(where, head, metainfo)


def _objects(
    samples: Sequence[BaseDataElement], metainfo: dict, model: nn.Module
) -> tuple[list[str], list[str]]:
    """Detection: labels of boxes and masks."""
    given = [s for s in samples if hasattr(s, 'gt_instances')]
    given = [s for s in given if hasattr(s.gt_instances, 'labels')]
    found = heads(model, ('bbox_head',)) or heads(model, ('mask_head',))
    if not given or not found:
        return [], []
    labels = [(int(i), _file(s)) for s in given for i in s.gt_instances.labels]
    where, head = next(iter(found.items()))
    errors, warnings = [], []
    # A single class is often an object, whatever it is.
    if head.num_classes > 1 or len(metainfo.get('classes', ())) == 1:
        errors = _beyond(labels, where, head.num_classes)
        warnings = [] if errors else _other_count(where, head, metainfo)
    if not labels:
        text = f'there is no object in {len(given)} samples: check the names '
        warnings.append(f'{text}of the classes, and the boxes')
    return errors, warnings


def _maps(
    samples: Sequence[BaseDataElement], metainfo: dict, model: nn.Module
) -> tuple[list[str], list[str]]:
    """Segmentation: labels of pixels."""
    found = heads(model, ('decode_head',))
    given = [s for s in samples if hasattr(s, 'gt_sem_seg')]
    if not given or not found:
        return [], []
    where, head = list(found.items())[-1]
    ignored = getattr(head, 'ignore_index', 255)
    labels: dict[int, str] = {}
    errors, warnings, covered = [], [], 0
    for sample in given:
        data, file = sample.gt_sem_seg.data, _labels_file(sample)
        wrong = _label_file(file, sample.metainfo.get('ori_shape'))
        if data.ndim != 3 or len(data) != 1:
            wrong = (
                f'labels are colours, of shape {tuple(data.shape)}, expected '
                'one number a pixel: save its class, in mode L or P'
            )
        if wrong:
            errors.append(f'{file}: {wrong}')
            continue
        values = [int(value) for value in data.unique()]
        covered += ignored in values
        labels.update({v: file for v in values if v != ignored})
    count = head.num_classes
    if getattr(head, 'out_channels', None) == 1:
        count = 2  # by the sign of one output
    errors += _beyond(list(labels.items()), where, count, ignored)
    classes = metainfo.get('classes', ())
    absent = [n for i, n in enumerate(classes) if i not in labels]
    few = len(classes) <= _FEW or len(labels) < 2
    if not errors and covered and absent and few and 2 * covered > len(given):
        warnings.append(
            f'no pixel of {first_few(absent)} in the {len(given)} maps of '
            f'labels looked at, while {covered} of them have pixels of '
            f'{ignored}, which is ignored: if that is a class, save it as '
            'its number (0 for the first)'
        )
    if not errors:
        warnings += _other_count(where, head, metainfo)
    return list(dict.fromkeys(errors)), warnings


def _label_file(path: str, shape: Any) -> str | None:
    """What the pipeline does not show of an image of labels."""
    try:
        with Image.open(path) as file:
            (width, height), mode = file.size, file.mode
            wide = mode.startswith(('I', 'F'))
            most = np.asarray(file).max() if wide else 0
    except Exception:
        # Of another kind than images, or not there: the pipeline's matter.
        return None
    if most > 255:
        return (
            f'it has a label of {most} (mode {mode}), and mmsegmentation '
            'reads labels as 8 bits, 0 to 255'
        )
    if shape is None or tuple(shape[:2]) == (height, width):
        return None
    text = f'its labels have {(width, height)} pixels, the image '
    text += f'{tuple(shape[1::-1])}'
    if tuple(shape[:2]) == (width, height):
        text += ': the image is turned as its EXIF says, the labels are not'
    return text


def _beyond(
    labels: Sequence[tuple[int, str]],
    where: str,
    count: int,
    ignored: int | None = None,
) -> list[str]:
    """Labels, with their files, that are not 0 to ``count - 1``."""
    beyond = [(v, f) for v, f in labels if v < 0 or v >= count]
    beyond = [(v, f) for v, f in beyond if v != -1 or ignored is not None]
    if not beyond:
        return []
    _, file = beyond[0]
    also = '' if ignored is None else f', or {ignored} for what is ignored'
    numbers = sorted({v for v, _ in beyond})
    return [
        f'model.{where}.num_classes={count} expects labels of 0 to '
        f'{count - 1}{also}, got {first_few(numbers)} (the first in {file})'
    ]


def _other_count(where: str, head: nn.Module, metainfo: dict) -> list[str]:
    classes = metainfo.get('classes') or ()
    if 'thing_classes' in metainfo and 'bbox_head' in where:
        classes = metainfo['thing_classes']  # panoptic data has stuff too
    count = head.num_classes
    if isinstance(classes, str) or count in (1, len(classes)) or not classes:
        return []
    return [
        f'model.{where}.num_classes is {count}, the data set has '
        f'{len(classes)} classes: {first_few(classes)}'
    ]


def _file(sample: BaseDataElement) -> str:
    return str(sample.metainfo.get('img_path', 'a sample'))


def _labels_file(sample: BaseDataElement) -> str:
    return str(sample.metainfo.get('seg_map_path') or _file(sample))
