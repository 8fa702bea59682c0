"""Whether the data of a config can be read, and fits the classes."""

from __future__ import annotations

import json
import logging
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ...datasets.images import IMAGE_SUFFIXES, find_images, sort_out
from ...utils.text import first_few
from .annotations import Findings, check_coco, check_labels
from .data_paths import walk_datasets

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
    """What is wrong with the files of the data sets of a loader, ``name``."""
    for _, config in walk_datasets((loader or {}).get('dataset'), name):
        for problem in _DataSet(config, name).problems():
            yield f'{name}: {problem}'


def class_problems(config: Config, loader: str) -> Iterator[str]:
    """Heads with another number of classes than the loader's data set."""
    node = (config.get(loader) or {}).get('dataset')
    # The innermost come first.
    for _, inner in islice(walk_datasets(node, loader), 1):
        classes = _DataSet(inner, loader).classes
        for where, count in _head_classes(config.model, 'model'):
            if classes is not None and count != len(classes):
                yield (
                    f'{where}.num_classes is {count}, the data set '
                    f'({inner.get("type")}) has {len(classes)} classes: '
                    f'{first_few(classes)}'
                )


def _head_classes(node: Any, where: str) -> Iterator[tuple[str, int]]:
    """num_classes of every head in a model's config, by dotted name."""
    if isinstance(node, Mapping):
        count = node.get('num_classes')
        is_head = where.split('.')[-1].rstrip('0123456789') in _HEADS
        # 1 is a mask or a foreground whatever its class.
        if is_head and isinstance(count, int) and count > 1:
            yield where, count
        for key, value in node.items():
            yield from _head_classes(value, f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            # `bbox_head` of a cascade is a list.
            yield from _head_classes(value, f'{where}{i}')


class _DataSet:
    """What can be said of a data set before it is built."""

    def __init__(self, config: Mapping, loader: str) -> None:
        self.config = config
        self.loader = loader
        self.root = config.get('data_root') or ''

    @cached_property
    def kinds(self) -> tuple[type, ...]:
        """Its class and the classes that this inherits from."""
        kind = self.config.get('type')
        if isinstance(kind, str):
            # As in building: the library of the default scope comes first.
            with DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        return getattr(kind, '__mro__', ())

    @property
    def own_classes(self) -> Sequence[str] | None:
        """The classes that all data sets of its kind have."""
        metainfo = getattr(self.kinds[0], 'METAINFO', {}) if self.kinds else {}
        return metainfo.get('classes')

    @property
    def classes(self) -> Sequence[str] | None:
        """None if they are not known, or in a file."""
        classes = (self.config.get('metainfo') or {}).get('classes')
        if classes is None:
            classes = self.own_classes
        return None if isinstance(classes, str) else classes

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folders of local images that it reads, by role."""
        prefixes = self.config.get('data_prefix')
        if not isinstance(prefixes, Mapping):
            # A string, or the split that stands for it, as in mmpretrain.
            prefixes = dict(labelled=prefixes or self.config.get('split'))
        paths = [osp.join(self.root, part or '') for part in prefixes.values()]
        found = zip(prefixes, paths, strict=True)
        return {role: p for role, p in found if p and '://' not in p}

    def argument(self, key: str) -> Any:
        """An argument, or the default nearest to its class."""
        if key in self.config:
            return self.config[key]
        for kind in self.kinds:
            found = signature(kind.__init__).parameters.get(key)
            if found is not None and found.default is not found.empty:
                return found.default
        return None

    def problems(self) -> Iterator[str]:
        if not _OF_FILES & {kind.__name__ for kind in self.kinds}:
            return
        for folder in self.folders.values():
            yield from _folder_problems(folder)
        ann_file = self.config.get('ann_file')
        if not ann_file:
            yield from self._subfolder_problems()
            yield from self._label_problems()
        elif '://' not in ann_file:
            path = osp.join(self.root, ann_file)
            yield from self._annotation_problems(path)

    def _annotation_problems(self, path: str) -> Iterator[str]:
        """Of mmdetection: annotations in the format of COCO."""
        is_coco = 'Coco' in str(self.config.get('type'))
        if not is_coco or not osp.isfile(path):
            return
        if osp.getsize(path) > _LARGEST_JSON:
            return
        try:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
        except (ValueError, RecursionError) as error:
            yield f'{path} is no JSON: {error}'
            return
        given = content.keys() if isinstance(content, dict) else set()
        missing = ', '.join(sorted(_COCO_KEYS - given))
        if missing:
            yield f'{path} is no annotation file of COCO: it has no {missing}'
            return
        if not content['images']:
            yield f'{path} names no image'
        folder = self.folders.get('img', '')
        steps = self.config.get('pipeline') or ()
        masks = any(step.get('with_mask') for step in steps)
        folder = folder if osp.isdir(folder) else None
        found = check_coco(content, self.classes, folder, masks, _SAMPLES)
        yield from self._tell(found, path)

    def _subfolder_problems(self) -> Iterator[str]:
        """Of mmpretrain: one subfolder a class, where classes are known."""
        folder = self.folders.get('labelled', '')
        split = self.config.get('split')
        # Where ImageNet looks for a list of files by itself.
        listed = osp.exists(osp.join(self.root, 'meta', f'{split}.txt'))
        labels = self.config.get('with_label', True) and split != 'test'
        if listed or not (labels and osp.isdir(folder) and self.classes):
            return
        found = sum(entry.is_dir() for entry in os.scandir(folder))
        if found != len(self.classes):
            yield (
                f'{folder} has {found} subfolders and the data set '
                f'{len(self.classes)} classes; every class needs its folder, '
                'and nothing else may be there'
            )

    def _label_problems(self) -> Iterator[str]:
        """Of mmsegmentation: a label an image, and what is in the first."""
        images = self.folders.get('img_path', '')
        labels = self.folders.get('seg_map_path', '')
        suffix = self.argument('img_suffix')
        label_suffix = self.argument('seg_map_suffix')
        known = suffix and label_suffix
        if not (known and osp.isdir(images) and osp.isdir(labels)):
            return
        there = _files(labels)
        wanted = {
            image: image.removesuffix(suffix) + label_suffix
            for image in sorted(_files(images))
            if image.endswith(suffix)
        }
        if not wanted:
            what = f'{suffix}, the img_suffix of the data set'
            yield f'no file in {images} ends in {what}'
            return
        missing = [label for label in wanted.values() if label not in there]
        if missing:
            yield (
                f'{len(missing)} of the {len(wanted)} images have no '
                f'labels: {labels} lacks {first_few(missing)}'
            )
        pairs = [
            (osp.join(images, image), osp.join(labels, label))
            for image, label in wanted.items()
            if label in there
        ]
        # With a selection of classes, labels are numbers in the whole list.
        classes = self.own_classes or self.classes
        found = check_labels(
            pairs[:_SAMPLES],
            None if classes is None else len(classes),
            self.argument('ignore_index'),
            bool(self.argument('reduce_zero_label')),
        )
        yield from self._tell(found, labels)

    def _tell(self, found: Findings, path: str) -> Iterator[str]:
        """Errors are problems, warnings are logged."""
        for line in Findings.lines(found.warnings):
            line = f'{self.loader}: {path}: {line}'
            print_log(line, 'current', logging.WARNING)
        for line in Findings.lines(found.errors):
            yield f'{path}: {line}'


def _folder_problems(folder: str) -> Iterator[str]:
    if not osp.isdir(folder):
        # One that is missing is named where the config is read.
        if osp.exists(folder):
            yield f'{folder} is a file, expected a folder of images'
        return
    images = list(islice(find_images(folder), _SAMPLES))
    if not images:
        yield (
            f'the folder {folder} holds no image, nor do its '
            f'subfolders (looked for {", ".join(IMAGE_SUFFIXES)})'
        )
    yield from sort_out(images)[1]


def _files(folder: str) -> set[str]:
    """Every file in a folder, by its path within it."""
    return {
        osp.relpath(osp.join(path, file), folder)
        for path, _, files in os.walk(folder)
        for file in files
    }
