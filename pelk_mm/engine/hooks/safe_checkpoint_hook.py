"""Checkpoints that survive a crash and load without running code."""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS

from ...models.utils import UnsafeCheckpointError, load_file
from ..fileio import ATOMIC_BACKEND
from .dynamic_sparsity_hook import warn_about_unused_masks

_HISTORY = 'history_buffer'
#: Modules' own dictionaries of tensors, with torch's notes about versions.
_ALREADY_PLAIN = ('state_dict', 'ema_state_dict')
_ARRAY_DTYPES = ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64',
                 'float16', 'float32', 'float64')


class _RemoveLater:
    """A file backend that puts removals off until they are asked for."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._removals: list[tuple[Any, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._removals.append((self._backend.rmtree, path))

    def carry_out(self, keep: set[str]) -> None:
        for remove, path in self._removals:
            if path not in keep:
                remove(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with three differences.

    - A checkpoint is written under a temporary name and renamed once it is on
      disk; the ones that it replaces are removed only then. A full disk, a
      Ctrl-C or a kill in the middle leaves the last good one.
    - What mmengine pickles as Python objects (the log histories) is stored as
      tensors. Since torch 2.6 ``torch.load`` refuses such objects, because
      loading them can run code, and mmengine 0.10 can then not resume. These
      checkpoints resume, and everybody can load them safely.
    - Resuming turns the histories back into mmengine's own.

    Args:
        *args, **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend):
            self.backend_args = dict(backend=ATOMIC_BACKEND)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Remove outdated checkpoints only after the body has succeeded."""
        if isinstance(self.file_backend, _RemoveLater):
            yield
            return
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        # A best checkpoint may be replaced under its own name.
        current = {self.last_ckpt, getattr(self, 'best_ckpt_path', None)}
        current.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        later.carry_out(keep={path for path in current if path})

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace Python objects by tensors, numbers and text."""
        for key, value in checkpoint.items():
            if key not in _ALREADY_PLAIN:
                checkpoint[key] = to_plain(value, key)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Give mmengine back the log histories that it expects.

        A sparse run that goes on without its hook is warned about here,
        because the hook that is missing cannot.
        """
        warn_about_unused_masks(runner, checkpoint)
        hub = checkpoint.get('message_hub')
        if isinstance(hub, Mapping):
            checkpoint['message_hub'] = dict(
                hub,
                log_scalars={
                    key: _to_history(value)
                    for key, value in hub.get('log_scalars', {}).items()
                })


def to_plain(value: Any, name: str = 'value') -> Any:
    """Convert to what ``torch.load(weights_only=True)`` accepts.

    Args:
        value (Any): Nested mappings and sequences of tensors, arrays,
            numbers, text and :class:`mmengine.logging.HistoryBuffer`.
        name (str): How to call it in a warning. Default: ``'value'``.

    Returns:
        Any: The same nesting of dicts, lists and tuples; arrays as tensors
        or, of text, as lists. Anything else is left out with a warning, as
        None.
    """
    if value is None or isinstance(value, (bool, bytes, torch.Tensor)):
        return value
    # Subclasses of str and of numbers are Python objects to the unpickler.
    for kind, convert in ((str, str.__str__), (int, int), (float, float),
                          (np.longdouble, float)):
        if isinstance(value, kind):
            return convert(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            _HISTORY:
            dict(
                log=torch.from_numpy(log.copy()),
                count=torch.from_numpy(count.copy()),
                max_length=int(value.max_length))
        }
    if isinstance(value, np.generic) and not isinstance(
            value.item(), np.generic):
        return to_plain(value.item(), name)
    if isinstance(value, np.ndarray):
        if value.dtype in _ARRAY_DTYPES:
            return torch.from_numpy(value.copy())
        return to_plain(value.tolist(), name)
    if isinstance(value, Mapping):
        # A scheduler of mmengine counts its milestones.
        kind = type(value) if type(value) in (Counter, OrderedDict) else dict
        return kind({
            to_plain(key, name): to_plain(item, f'{name}.{key}')
            for key, item in value.items()
        })
    if isinstance(value, tuple):
        return tuple(to_plain(item, name) for item in value)
    if isinstance(value, (list, set, frozenset, deque)):
        return [to_plain(item, name) for item in value]
    print_log(
        f'{name} is a {type(value).__name__}, which does not load safely: it '
        'is left out of the checkpoint',
        logger='current',
        level=logging.WARNING)
    return None


def _to_history(value: Any) -> Any:
    if isinstance(value, Mapping) and _HISTORY in value:
        parts = value[_HISTORY]
        return HistoryBuffer(parts['log'].cpu().numpy(),
                             parts['count'].cpu().numpy(),
                             parts['max_length'])
    return value


def check_resumable(path: str | Path) -> None:
    """Raise unless a run can go on from a checkpoint.

    Args:
        path (str | Path): A local file.

    Raises:
        OSError: If there is none, or it cannot be opened.
        ValueError: If it is not whole, does not load safely, or holds weights
            without the state of a run; the message says what to do.
    """
    try:
        checkpoint = load_file(path, mmap=True)
    except UnsafeCheckpointError as error:
        raise ValueError(
            f"{error}. mmengine's CheckpointHook writes such files. To resume "
            'from this one, if you trust who made it, set '
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for this run; what it saves '
            'will need no such thing') from error
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    parts = ('meta', 'message_hub', 'state_dict')
    if not isinstance(checkpoint, Mapping) or any(part not in checkpoint
                                                  for part in parts):
        raise ValueError(
            f'{path} cannot be resumed from: it does not hold the state of a '
            f'run ({", ".join(parts)}); to start from its weights name it in '
            'load_from')


def find_resumable(work_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a run.

    Args:
        work_dir (str | Path): Where the run saved.

    Returns:
        str | None: The one that ``last_checkpoint`` names, if that can be
        resumed from; otherwise the newest ``iter_*.pth`` or ``epoch_*.pth``
        that can. None if there is none.
    """
    work_dir = Path(work_dir)
    candidates = sorted((path for pattern in ('iter_*.pth', 'epoch_*.pth')
                         for path in work_dir.glob(pattern)),
                        key=os.path.getmtime,
                        reverse=True)
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if named:
        # The file of that name here comes first: a work dir that was copied
        # still points to where it came from.
        candidates[:0] = [work_dir / Path(named).name, Path(named)]
    for path in dict.fromkeys(filter(Path.is_file, candidates)):
        try:
            check_resumable(path)
        except (OSError, ValueError) as error:
            print_log(str(error), logger='current', level=logging.WARNING)
        else:
            return str(path)
    return None
