"""Mistakes that would cost training time, found before it starts."""

from __future__ import annotations

import json
import logging
import os
import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import islice
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, OPTIMIZERS, init_default_scope
from torch import Tensor, nn

from ..datasets.annotations import Findings, check_coco, check_labels
from ..datasets.images import IMAGE_SUFFIXES, check_image, find_images
from ..models import PeLK
from ..models.utils import (
    check_pretrained,
    check_state_dict,
    read_checkpoint,
    weights_of,
)
from ..ops.checks import did_you_mean
from .build_errors import LIKELY, explain, registered
from .channels import check_channels
from .conversion import build_model
from .launch import LaunchError
from .optimizers import LayerDecayOptimWrapperConstructor

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
_LAYER_DECAY = LayerDecayOptimWrapperConstructor.__name__
_COCO_KEYS = {'images', 'annotations', 'categories'}


def preflight(config: Config, training: bool = True) -> None:
    """Raise unless data, model and weights of a config go together.

    Looked for are data folders that hold no image, or images that cannot be
    decoded (the first few are), annotations that would end the training or
    teach the wrong thing (those that the libraries leave out are counted in
    the log), heads whose number of classes is not the data set's, necks and
    heads whose channels are not the backbone's, weights (``load_from`` and
    the backbone's ``init_cfg``) of another arch or number of classes, and
    fields of the model or the layer decay that cannot be.

    A checkpoint's head with another number of classes is refused, unless the
    config has ``new_head = True``: then that head starts anew. Files that are
    missing are the business of :func:`~pelk_mm.datasets.check.check_data`.

    Args:
        config (Config): As it goes to the runner. Not changed.
        training (bool): Whether to train; to test, the checkpoint must hold
            every weight. Default: True.

    Raises:
        LaunchError: Naming everything that is wrong.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    loaders = ('train', 'val') if training else ('test',)
    problems = [
        problem
        for split in loaders
        for problem in _data_problems(
            config.get(f'{split}_dataloader'), f'{split}_dataloader'
        )
    ]
    problems += _class_problems(config, f'{loaders[0]}_dataloader')
    try:
        model = _build(config)
    except LIKELY as error:
        if problems:
            _report(
                [*problems, f'the model cannot be built: {explain(error)}']
            )
        raise LaunchError(
            f'the model cannot be built: {explain(error)}'
        ) from error
    problems += _channel_problems(model)
    problems += _pretrained_problems(model)
    if config.get('load_from'):
        problems += _load_problems(config, model, config.load_from, training)
    if training:
        problems += _optimizer_problems(config, model)
    _report(problems)


def check_weights(config: Config, checkpoint: str) -> None:
    """Raise unless a checkpoint holds every weight of a config's model.

    Args:
        config (Config): The model's. Not changed.
        checkpoint (str): Path; URLs are not checked.

    Raises:
        LaunchError: If it does not.
    """
    model = build_model(config, device='meta')
    _report(_load_problems(config, model, checkpoint, training=False))


def _report(problems: Iterable[str]) -> None:
    problems = list(dict.fromkeys(problems))
    if len(problems) > 1:
        raise LaunchError('\n- '.join(['the run would fail:', *problems]))
    if problems:
        raise LaunchError(problems[0])


def _build(config: Config) -> nn.Module:
    """The model, without its weights if it can be built so."""
    try:
        return build_model(config, device='meta')
    except Exception:
        # It may be fit for real devices only.
        return build_model(config)


# Data ------------------------------------------------------------------------


def _data_problems(loader: Mapping | None, name: str) -> Iterator[str]:
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
    for image in images:
        try:
            check_image(image)
        except ValueError as error:
            yield f'{name}: {error}'


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
            f'{name}: {path} has no category {_some(absent)} of the '
            f'classes of the data set; it has {_some(sorted(known))}'
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
            f'labels: {labels} lacks {_some(missing)}'
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


def _class_problems(config: Config, loader: str) -> Iterator[str]:
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
                f'{_some(classes)}'
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


# Model and weights -----------------------------------------------------------


def _backbones(model: nn.Module) -> Iterator[tuple[str, PeLK]]:
    for name, module in model.named_modules():
        if isinstance(module, PeLK):
            yield f'{name}.' if name else '', module


def _channel_problems(model: nn.Module) -> Iterator[str]:
    try:
        check_channels(model)
    except ValueError as error:
        yield str(error)


def _pretrained_problems(model: nn.Module) -> Iterator[str]:
    for prefix, backbone in _backbones(model):
        try:
            check_pretrained(backbone)
        except (OSError, RuntimeError) as error:
            yield f'model.{prefix}init_cfg: {error}'


def _optimizer_problems(config: Config, model: nn.Module) -> Iterator[str]:
    """What the runner finds only after reading the data."""
    wrapper = config.get('optim_wrapper') or {}
    if not isinstance(wrapper, Mapping) or 'strategy' in config:
        return
    optimizer = wrapper.get('optimizer')
    kind = optimizer.get('type') if isinstance(optimizer, Mapping) else None
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            if registry.get(kind) is None:
                yield (
                    f'optim_wrapper.optimizer: there is no {kind!r}'
                    f'{did_you_mean(kind, registered(registry))}'
                )
    if wrapper.get('constructor') != _LAYER_DECAY:
        return
    try:
        LayerDecayOptimWrapperConstructor(
            wrapper, wrapper.get('paramwise_cfg')
        ).make_groups(model)
    except (TypeError, ValueError) as error:
        yield f'optim_wrapper: {error}'


def _load_problems(
    config: Config, model: nn.Module, path: str, training: bool
) -> Iterator[str]:
    if '://' in path:
        return
    try:
        given = weights_of(read_checkpoint(path), path)
    except (OSError, RuntimeError) as error:
        yield str(error)
        return
    given = {
        name.removeprefix('module.'): value for name, value in given.items()
    }
    own = model.state_dict()
    if not own.keys() & given.keys():
        yield (
            f'{path} holds no weight of this model: it has '
            f'{_some(list(given))}, the model {_some(list(own))}'
        )
        return
    explained = []
    for prefix, backbone in _backbones(model):
        explained.append(prefix)
        try:
            check_state_dict(backbone, given, prefix)
        except RuntimeError as error:
            yield f'{path}: {error}'
    rest = {
        name: value
        for name, value in own.items()
        if not any(name.startswith(prefix) for prefix in explained)
    }
    yield from _head_problems(config, path, rest, given, training)
    if not training:
        missing = [
            name
            for name in own
            if name not in given and not name.endswith('num_batches_tracked')
        ]
        if missing:
            yield (
                f'{path} lacks {len(missing)} of the {len(own)} entries '
                f'of the model: {_some(missing)}'
            )


def _head_problems(
    config: Config,
    path: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    training: bool,
) -> Iterator[str]:
    wrong = [
        name
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if not wrong:
        return
    shapes = '; '.join(
        f'{name} is {tuple(given[name].shape)} in the checkpoint, '
        f'{tuple(own[name].shape)} in the model'
        for name in wrong[:3]
    )
    may_differ = training and not config.get('resume')
    if may_differ and config.get('new_head'):
        print_log(
            f'new_head: {len(wrong)} entries do not fit {path} and start '
            f'anew: {", ".join(wrong)}',
            'current',
        )
        return
    advice = (
        '; if the data has other classes on purpose, let the head '
        'start anew with --cfg-options new_head=True'
        if may_differ
        else ''
    )
    yield (
        f'{path} does not fit the model behind the backbone, as with '
        f'another number of classes ({shapes}){advice}'
    )


def _some(items: Sequence, most: int = 3) -> str:
    more = f' and {len(items) - most} more' if len(items) > most else ''
    return ', '.join(map(str, items[:most])) + more
