"""Checkpoints that survive a crash and load without running code."""

from __future__ import annotations

import logging
import os
from collections import deque
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

from ..fileio import ATOMIC_BACKEND
from .dynamic_sparsity_hook import warn_about_unused_masks

_HISTORY = 'history_buffer'
#: Tensors and numbers only, as torch and mmengine make them.
_ALREADY_PLAIN = ('state_dict', 'optimizer')


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
        if self.backend_args is None and isinstance(self.file_backend,
                                                    LocalBackend):
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
        Any: The same nesting of dicts, lists and tuples. Anything else is
        left out with a warning, as None.
    """
    if value is None or isinstance(value, (bool, torch.Tensor)):
        return value
    # Subclasses of str and of numbers are Python objects to the unpickler.
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (bytes, Path)):
        return str(value)
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            _HISTORY:
            dict(
                log=torch.as_tensor(np.asarray(log, dtype=np.float64)),
                count=torch.as_tensor(np.asarray(count, dtype=np.float64)),
                max_length=int(value.max_length))
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {
            to_plain(key, name): to_plain(item, f'{name}.{key}')
            for key, item in value.items()
        }
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


def find_resumable(work_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a run.

    Args:
        work_dir (str | Path): Where the run saved.

    Returns:
        str | None: The one that ``last_checkpoint`` names, if that loads;
        otherwise the newest ``iter_*.pth`` or ``epoch_*.pth`` that does. None
        if there is none.
    """
    work_dir = Path(work_dir)
    candidates = sorted((path for pattern in ('iter_*.pth', 'epoch_*.pth')
                         for path in work_dir.glob(pattern)),
                        key=os.path.getmtime,
                        reverse=True)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = pointer.read_text().strip()
        if named:
            # A work dir that was moved still holds the file by its name.
            candidates[:0] = [Path(named), work_dir / Path(named).name]
    for path in candidates:
        if path.is_file():
            try:
                torch.load(path, map_location='cpu', mmap=True)
            except Exception as error:
                print_log(
                    f'{path} cannot be resumed from: {error}',
                    logger='current',
                    level=logging.WARNING)
            else:
                return str(path)
    return None
