"""Whether the data that a config names is there, before anything is built."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def check_data(config: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Raise unless the folders and files of the data sets exist.

    Knows what the data sets of mmpretrain, mmsegmentation and mmdetection
    have in common: ``data_root``, ``data_prefix`` and ``ann_file``, also of
    data sets inside others. What is not local is not looked at.

    Args:
        config (Mapping): A config with ``train_dataloader`` and so on.
        splits (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: If something is missing; the message names it and
            the fields of the config that lead there.
    """
    missing: dict[str, list[str]] = {}
    for split in splits:
        loader = config.get(f'{split}_dataloader') or {}
        for field, dataset in _datasets(
            loader.get('dataset'), f'{split}_dataloader.dataset'
        ):
            path = _first_missing(dataset)
            if path is not None:
                missing.setdefault(path, []).append(field)
    if not missing:
        return
    fields = [field for names in missing.values() for field in names]
    lines = [
        f'there is no {path} ({", ".join(names)})'
        for path, names in missing.items()
    ]
    raise FileNotFoundError(
        'the data is not there:\n  '
        + '\n  '.join(lines)
        + f'\nRelative paths start at {os.getcwd()}. Link the data to where '
        'the config expects it, or say where it is:\n  --cfg-options '
        + ' '.join(f'{field}.data_root=PATH' for field in fields)
    )


def _datasets(node: Any, field: str) -> Iterator[tuple[str, Mapping]]:
    """Data sets by their dotted names, those inside wrappers too."""
    if not isinstance(node, Mapping):
        return
    if 'data_root' in node:
        yield field, node
    yield from _datasets(node.get('dataset'), f'{field}.dataset')
    for i, inner in enumerate(node.get('datasets') or ()):
        yield from _datasets(inner, f'{field}.datasets.{i}')


def _first_missing(dataset: Mapping) -> str | None:
    """The root if that is missing, else the first part that is."""
    root = dataset.get('data_root') or ''
    if '://' in root or dataset.get('backend_args'):
        return None
    prefix = dataset.get('data_prefix') or {}
    parts = [prefix] if isinstance(prefix, str) else list(prefix.values())
    parts.append(dataset.get('ann_file'))
    paths = [root] if root else []
    paths += [
        osp.join(root, part)
        for part in parts
        if part and isinstance(part, str) and '://' not in part
    ]
    return next((path for path in paths if not osp.exists(path)), None)
