"""Writing checkpoints that load without running code: the serialising half.

What a run holds becomes tensors and plain values before it is saved, see
:class:`~pelk_mm.engine.hooks.SafeCheckpointHook`; reading is in
:mod:`~pelk_mm.models.utils.safe_loading`.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log

from ...utils.files import atomic_path

_HISTORY = 'history_buffer'
# fmt: off
#: Of arrays that become tensors.
_DTYPES = ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64',
           'float16', 'float32', 'float64')
# fmt: on
_SCALARS: dict[type, Callable] = {str: str.__str__, int: int, float: float}
_SCALARS[np.longdouble] = float


def to_plain(value: Any, name: str = 'value') -> Any:
    """Convert to what ``torch.load(weights_only=True)`` accepts.

    Dicts, lists and tuples stay. Arrays become tensors or, of text, lists,
    log histories dicts. Anything else becomes None, with a warning.
    """
    if value is None or isinstance(value, (bool, bytes, torch.Tensor)):
        return value
    # Subclasses of str and of numbers are Python objects to the unpickler.
    for scalar, convert in _SCALARS.items():
        if isinstance(value, scalar):
            return convert(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, HistoryBuffer):
        log, count = (torch.from_numpy(part.copy()) for part in value.data)
        length = int(value.max_length)
        return {_HISTORY: dict(log=log, count=count, max_length=length)}
    if isinstance(value, np.generic):
        item = value.item()
        if not isinstance(item, np.generic):
            return to_plain(item, name)
    if isinstance(value, np.ndarray):
        if value.dtype in _DTYPES:
            return torch.from_numpy(value.copy())
        return to_plain(value.tolist(), name)
    if isinstance(value, Mapping):
        items = {
            to_plain(key, name): to_plain(item, f'{name}.{key}')
            for key, item in value.items()
        }
        # A scheduler of mmengine counts its milestones.
        kind: Any = type(value)
        return kind(items) if kind in (Counter, OrderedDict) else items
    if isinstance(value, tuple):
        return tuple(to_plain(item, name) for item in value)
    if isinstance(value, (list, set, frozenset, deque)):
        return [to_plain(item, name) for item in value]
    print_log(
        f'{name} is a {type(value).__name__}, which does not load safely: it '
        'is left out of the checkpoint',
        logger='current',
        level=logging.WARNING,
    )
    return None


def to_history(value: Any) -> Any:
    """Give mmengine back a log history that :func:`to_plain` has stored."""
    if isinstance(value, Mapping) and _HISTORY in value:
        parts = value[_HISTORY]
        log, count = (parts[key].cpu().numpy() for key in ('log', 'count'))
        return HistoryBuffer(log, count, parts['max_length'])
    return value


#: Of a checkpoint's meta, what is still true and of use in another one.
_META = ('dataset_meta', 'epoch', 'iter', 'mmengine_version')


def kept_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's meta, what is still true of one made from it."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return {}
    return to_plain({key: meta[key] for key in _META if key in meta}, 'meta')


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(dict(checkpoint), temporary)
