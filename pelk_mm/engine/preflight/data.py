"""Whether the data of a config can be read, and fits the classes."""

from __future__ import annotations

import json
import logging
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from itertools import islice
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ...datasets.images import IMAGE_SUFFIXES, find_images, sort_out
from ...utils.text import first_few
from .annotations import Findings, check_coco, check_labels

#: Images that are decoded per folder.
_SAMPLES = 8


#: Larger annotation files are read by their data set only.
_LARGEST_JSON = 64 << 20


#: The libraries' data sets of image files. Others, such as CIFAR's archives,
#: are left to themselves.
_OF_FILES = {'CustomDataset', 'BaseSegDataset', 'BaseDetDataset'}


#: Heads that tell the data set's classes apart. Others count other things,
#: such as semantic_head the classes of stuff, or rpn_head a single one.
_HEADS = ('head', 'decode_head', 'auxiliary_head', 'bbox_head', 'mask_head')


_COCO_KEYS = {'images', 'annotations', 'categories'}


def data_problems(loader: Mapping | None, name: str) -> Iterator[str]:
    for dataset in _leaves((loader or {}).get('dataset')):
        kinds = getattr(_dataset_class(dataset), '__mro__', ())
        if not _OF_FILES & {kind.__name__ for kind in kinds}:
            continue
        folders = dict(_folders(dataset))
        for folder in folders.values():
            yield from _folder_problems(folder, name)
        ann_file = dataset.get('ann_file')
        if ann_file and '://' not in ann_file:
            path = osp.join(dataset.get('data_root') or '', ann_file)
            yield from _annotation_problems(
                path, dataset, name, folders.get('img')
            )
        elif not ann_file and 'labelled' in folders:
            yield from _subfolder_problems(folders['labelled'], dataset, name)
        if folders.keys() >= {'img_path', 'seg_map_path'}:
            yield from _label_problems(
                folders['img_path'], folders['seg_map_path'], dataset, name
            )


def _leaves(dataset: Any) -> Iterator[Mapping]:
    """Data set configs inside of wrappers."""
    if isinstance(dataset, Mapping):
        inner = dataset.get('datasets', dataset.get('dataset'))
        if inner is None:
            yield dataset
        else:
            yield from _leaves(inner)
    elif isinstance(dataset, Sequence) and not isinstance(dataset, str):
        for item in dataset:
            yield from _leaves(item)


def _folders(dataset: Mapping) -> Iterator[tuple[str, str]]:
    """The folders of local images that a data set reads, by role."""
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix')
    if not isinstance(prefixes, Mapping):
        # A string, or the split that stands for it, as in mmpretrain.
        prefix = prefixes or dataset.get('split') or ''
        if not (root or prefix):
            return
        prefixes = dict(labelled=prefix)
    for role, prefix in prefixes.items():
        path = osp.join(root, prefix or '')
        if path and '://' not in path:
            yield role, path


def _folder_problems(folder: str, name: str) -> Iterator[str]:
    if not osp.isdir(folder):
        # One that is missing is named where the config is read.
        if osp.exists(folder):
            yield f'{name}: {folder} is a file, expected a folder of images'
        return
    images = list(islice(find_images(folder), _SAMPLES))
    if not images:
        yield (
            f'{name}: the folder {folder} holds no image, nor do its '
            f'subfolders (looked for {", ".join(IMAGE_SUFFIXES)})'
        )
    for why_not in sort_out(images)[1]:
        yield f'{name}: {why_not}'


def _annotation_problems(
    path: str, dataset: Mapping, name: str, folder: str | None
) -> Iterator[str]:
    if (
        'Coco' not in str(dataset.get('type'))
        or not osp.isfile(path)
        or osp.getsize(path) > _LARGEST_JSON
    ):
        return
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        yield f'{name}: {path} is no JSON: {error}'
        return
    missing = _COCO_KEYS - (
        content.keys() if isinstance(content, dict) else set()
    )
    if missing:
        yield (
            f'{name}: {path} is not an annotation file of COCO: it has no '
            f'{", ".join(sorted(missing))}'
        )
        return
    if not content['images']:
        yield f'{name}: {path} names no image'
    classes = _classes(dataset)
    found = check_coco(
        content,
        classes,
        folder if folder and osp.isdir(folder) else None,
        any(step.get('with_mask') for step in dataset.get('pipeline') or ()),
        _SAMPLES,
    )
    yield from _tell(found, path, name)
    if not isinstance(content['categories'], list):
        return
    known = {
        str(category.get('name'))
        for category in content['categories']
        if isinstance(category, Mapping)
    }
    absent = [label for label in classes or () if label not in known]
    if absent:
        yield (
            f'{name}: {path} has no category {first_few(absent)} of the '
            f'classes of the data set; it has {first_few(sorted(known))}'
        )


def _tell(found: Findings, path: str, name: str) -> Iterator[str]:
    """Errors are problems, warnings are logged."""
    for line in Findings.lines(found.warnings):
        print_log(f'{name}: {path}: {line}', 'current', logging.WARNING)
    for line in Findings.lines(found.errors):
        yield f'{name}: {path}: {line}'


def _label_problems(
    images: str, labels: str, dataset: Mapping, name: str
) -> Iterator[str]:
    """Of mmsegmentation: a label for each image, and what is in the first."""
    if not (osp.isdir(images) and osp.isdir(labels)) or dataset.get(
        'ann_file'
    ):
        return
    suffix, label_suffix = (
        _argument(dataset, f'{kind}_suffix') for kind in ('img', 'seg_map')
    )
    if not suffix or not label_suffix:
        return
    given, there = (
        {
            osp.relpath(osp.join(path, file), folder)
            for path, _, files in os.walk(folder)
            for file in files
        }
        for folder in (images, labels)
    )
    stems = sorted(
        file[: -len(suffix)] for file in given if file.endswith(suffix)
    )
    if not stems:
        yield (
            f'{name}: no file in {images} ends in {suffix}, the '
            'img_suffix of the data set'
        )
        return
    missing = [
        stem + label_suffix
        for stem in stems
        if stem + label_suffix not in there
    ]
    if missing:
        yield (
            f'{name}: {len(missing)} of the {len(stems)} images have no '
            f'labels: {labels} lacks {first_few(missing)}'
        )
    classes = _classes(dataset)
    own = getattr(_dataset_class(dataset), 'METAINFO', {}).get('classes')
    # With a selection of the classes, labels are numbers in the whole list.
    classes = own or classes
    found = check_labels(
        [
            (
                osp.join(images, stem + suffix),
                osp.join(labels, stem + label_suffix),
            )
            for stem in stems
            if stem + label_suffix in there
        ][:_SAMPLES],
        None if classes is None else len(classes),
        _argument(dataset, 'ignore_index'),
        bool(_argument(dataset, 'reduce_zero_label')),
    )
    yield from _tell(found, labels, name)


def _argument(dataset: Mapping, key: str) -> Any:
    """An argument of a data set, or the default nearest to its class."""
    if key in dataset:
        return dataset[key]
    for kind in getattr(_dataset_class(dataset), '__mro__', ()):
        parameter = signature(kind.__init__).parameters.get(key)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return None


def _subfolder_problems(
    folder: str, dataset: Mapping, name: str
) -> Iterator[str]:
    """Images in one subfolder a class, with classes known beforehand."""
    classes = _classes(dataset)
    if (
        not osp.isdir(folder)
        or not classes
        or not dataset.get('with_label', True)
        or dataset.get('split') == 'test'
        or osp.exists(_list_file(dataset))
    ):
        return
    found = sum(entry.is_dir() for entry in os.scandir(folder))
    if found != len(classes):
        yield (
            f'{name}: {folder} has {found} subfolders and the data set '
            f'{len(classes)} classes; every class needs its folder, and '
            'nothing else may be there'
        )


def _list_file(dataset: Mapping) -> str:
    """Where mmpretrain's ImageNet looks for a list of files by itself."""
    return osp.join(
        dataset.get('data_root') or '', 'meta', f'{dataset.get("split")}.txt'
    )


def _dataset_class(dataset: Mapping) -> type | None:
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    # As in building: the library of the default scope comes first.
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def _classes(dataset: Mapping) -> Sequence[str] | None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = getattr(_dataset_class(dataset), 'METAINFO', {}).get(
            'classes'
        )
    return None if isinstance(classes, str) else classes


def class_problems(config: Config, loader: str) -> Iterator[str]:
    dataset = next(_leaves((config.get(loader) or {}).get('dataset')), None)
    if dataset is None:
        return
    classes = _classes(dataset)
    if classes is None:
        return
    for where, count in _head_classes(config.model, 'model'):
        if count != len(classes):
            yield (
                f'{where}.num_classes is {count}, the data set '
                f'({dataset.get("type")}) has {len(classes)} classes: '
                f'{first_few(classes)}'
            )


def _head_classes(node: Any, where: str) -> Iterator[tuple[str, int]]:
    """num_classes of every head in a model's config, by dotted name."""
    if isinstance(node, Mapping):
        count = node.get('num_classes')
        # 1 is a mask or a foreground whatever its class.
        if (
            where.split('.')[-1].rstrip('0123456789') in _HEADS
            and isinstance(count, int)
            and count > 1
        ):
            yield where, count
        for key, value in node.items():
            yield from _head_classes(value, f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            # `bbox_head` of a cascade is a list.
            yield from _head_classes(value, f'{where}{i}')
