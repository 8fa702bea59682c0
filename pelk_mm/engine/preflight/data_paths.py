"""Whether the data that a config names is there, before anything is built."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def check_data(config: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Raise unless the folders and files of the data sets exist.

    Knows what the data sets of mmpretrain, mmsegmentation and mmdetection
    have in common: ``data_root``, ``data_prefix`` and ``ann_file``, also of
    data sets inside others. What is not local is not looked at, nor are
    labels of ``'test'``, which may only be predicted. A FileNotFoundError
    names what is missing and its fields.
    """
    missing: dict[str, list[str]] = {}
    for split in splits:
        loader = f'{split}_dataloader'
        node = (config.get(loader) or {}).get('dataset')
        for field, dataset in walk_datasets(node, f'{loader}.dataset'):
            path = _first_missing(dataset, labels=split != 'test')
            if path is not None:
                missing.setdefault(path, []).append(field)
    if not missing:
        return
    lines = [
        f'there is no {path} ({", ".join(fields)})'
        for path, fields in missing.items()
    ]
    advice = [
        f'{field}.data_root=PATH'
        for fields in missing.values()
        for field in fields
    ]
    for split in splits:
        advice += _evaluator_advice(config, f'{split}_evaluator', missing)
    raise FileNotFoundError(
        'the data is not there:\n  '
        + '\n  '.join(lines)
        + f'\nRelative paths start at {os.getcwd()}. Link the data to where '
        'the config expects it, or say where it is:\n  --cfg-options '
        + ' '.join(advice)
    )


def _evaluator_advice(
    config: Mapping[str, Any], field: str, roots: Iterable[str]
) -> Iterator[str]:
    """Options for annotations that an evaluator reads, with their own path."""
    node = config.get(field) or []
    found = {field: node}
    if isinstance(node, (list, tuple)):
        found = {f'{field}.{i}': inner for i, inner in enumerate(node)}
    for name, evaluator in found.items():
        is_config = isinstance(evaluator, Mapping)
        path = evaluator.get('ann_file') if is_config else None
        if not isinstance(path, str) or '://' in path or osp.exists(path):
            continue
        root = max((r for r in roots if path.startswith(r)), default='')
        rest = path.removeprefix(root).lstrip('/') if root else ''
        yield f'{name}.ann_file={osp.join("PATH", rest) if rest else "PATH"}'


def walk_datasets(node: Any, field: str) -> Iterator[tuple[str, Mapping]]:
    """Configs of data sets by dotted name, wrappers after what they wrap."""
    if isinstance(node, Mapping):
        for key in ('dataset', 'datasets'):
            yield from walk_datasets(node.get(key), f'{field}.{key}')
        yield field, node
    elif isinstance(node, (list, tuple)):
        for i, inner in enumerate(node):
            yield from walk_datasets(inner, f'{field}.{i}')


def _first_missing(dataset: Mapping, labels: bool) -> str | None:
    """The root if that is missing, else the first part that is."""
    root = dataset.get('data_root') or ''
    elsewhere = '://' in root or dataset.get('backend_args')
    if elsewhere or 'data_root' not in dataset:
        return None
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        prefix = dict(img=prefix)
    parts = [
        part for role, part in prefix.items() if labels or 'seg' not in role
    ]
    paths = [root] if root else []
    paths += [
        osp.join(root, part)
        for part in [*parts, dataset.get('ann_file')]
        if part and isinstance(part, str) and '://' not in part
    ]
    return next((path for path in paths if not osp.exists(path)), None)
