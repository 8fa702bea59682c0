"""Checkpoints that survive a crash and load without running code."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...models.utils import Checkpoints, UnsafeCheckpointError
from ...models.utils.safe_saving import to_history, to_plain
from ...utils.files import ATOMIC_BACKEND, atomic_path, remove_leftovers
from .dynamic_sparsity_hook import warn_about_unused_masks
from .resuming import check_resumed

#: Where mmengine notes the newest checkpoint of a work dir, and where the name
#: of the one to come stands while it is saved.
_POINTER, _COMING = 'last_checkpoint', '.next_checkpoint'
#: Modules' own dictionaries of tensors, with torch's notes about versions.
_ALREADY_PLAIN = ('state_dict', 'ema_state_dict')


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


class PlainCheckpoints(Hook):
    """Checkpoints without Python objects, whichever hook saves them.

    What mmengine pickles as objects (the log histories) is stored as tensors,
    and given back to mmengine when a run is resumed.
    """

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Replace Python objects by tensors, numbers and text."""
        for key, value in checkpoint.items():
            if key not in _ALREADY_PLAIN:
                checkpoint[key] = to_plain(value, key)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Give mmengine back the log histories that it expects.

        What of the run that is resumed is not this run's is told here: its
        optimizer, and masks of a hook that is missing. A LaunchError where
        the optimizer does not fit.
        """
        if runner._resume:
            check_resumed(runner, checkpoint)
            warn_about_unused_masks(runner, checkpoint)
        hub = checkpoint.get('message_hub')
        if isinstance(hub, Mapping):
            scalars = hub.get('log_scalars', {}).items()
            histories = {key: to_history(value) for key, value in scalars}
            checkpoint['message_hub'] = dict(hub, log_scalars=histories)


@HOOKS.register_module()
class SafeCheckpointHook(PlainCheckpoints, CheckpointHook):
    """mmengine's ``CheckpointHook`` with these differences.

    - A checkpoint is written under a temporary name and renamed once it is on
      disk; the ones that it replaces are removed only then. A full disk, a
      Ctrl-C or a kill in the middle leaves the last good one.
    - :func:`find_resumable` finds the newest one after a kill at any moment,
      whatever the clock says. What a kill has left half-written is removed
      when the training goes on.
    - No Python objects are pickled, see :class:`PlainCheckpoints`. Since torch
      2.6 ``torch.load`` refuses them, because loading them can run code, and
      mmengine 0.10 can then not resume. These checkpoints resume, and
      everybody can load them safely.
    - ``runner.val()`` alone saves nothing; with ``save_best`` mmengine's
      ends in an AttributeError.

    Args:
        *args, **kwargs: As for :class:`mmengine.hooks.CheckpointHook`.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self._is_local = isinstance(self.file_backend, LocalBackend)
        if not self._is_local:
            return
        self.backend_args = dict(backend=ATOMIC_BACKEND)
        if hasattr(runner, 'strategy'):
            _make_atomic(runner.strategy)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                for path in remove_leftovers(folder, '.pth'):
                    text = 'which a killed process has left half-written'
                    runner.logger.info(f'removed {path}, {text}')
            for note in (_POINTER, _COMING):
                remove_leftovers(runner.work_dir, '', stem=note)
            self._start_pointer(runner)

    def _start_pointer(self, runner) -> None:
        """Point to the checkpoint that is gone on from, if it is one of ours.

        Otherwise a kill before the first new one would bring back the newest,
        where an older one was resumed on purpose.
        """
        work_dir = Path(runner.work_dir)
        resumed = runner._load_from if runner._resume else None
        path = Path(resumed or '').absolute()
        if resumed and path.parent in (work_dir, Path(self.out_dir)):
            _write(work_dir / _POINTER, str(path))
        (work_dir / _COMING).unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        with self._removing_last(), self._announced(runner, step):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not hasattr(self, 'file_backend'):
            # A validation alone: nothing was trained, nothing is to be saved.
            return
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _announced(self, runner, step: int) -> Iterator[None]:
        """Keep a note of the checkpoint to come until it is pointed to.

        mmengine writes its pointer behind the checkpoint, and in place. The
        note bridges a kill in between.
        """
        path = Path(self.out_dir, self.filename_tmpl.format(step))
        # A file of that name from an earlier run would be taken for it.
        foreign = str(path) != self.last_ckpt and path.exists()
        if foreign or not (self._is_local and is_main_process()):
            yield
            return
        note = Path(runner.work_dir, _COMING)
        _write(note, str(path))
        try:
            yield
        finally:
            # An interruption may have come between checkpoint and pointer.
            pointed = _read(note.with_name(_POINTER)) == str(path)
            if pointed or not path.exists():
                note.unlink(missing_ok=True)

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


def _make_atomic(strategy: Any) -> None:
    """Have a strategy of mmengine's FlexibleRunner write like the Runner.

    Strategies choose how to write by themselves, whatever the hook asks for.
    A RuntimeError if the strategy saves folders, past all hooks.
    """
    if type(strategy).__name__ == 'DeepSpeedStrategy' or (
        hasattr(strategy, 'state_dict_type')
        and strategy.state_dict_type.name != 'FULL_STATE_DICT'
    ):
        raise RuntimeError(
            f'{type(strategy).__name__} saves its checkpoints itself, as '
            'folders, which SafeCheckpointHook cannot protect; use '
            "type='CheckpointHook' (after a crash its newest checkpoint may "
            'be incomplete)'
        )
    save = strategy.save_checkpoint

    def save_atomically(filename: str, **kwargs) -> None:
        if not is_main_process():
            # Takes part in gathering the state, and writes nothing.
            save(filename, **kwargs)
            return
        with atomic_path(filename) as path:
            save(str(path), **kwargs)

    strategy.save_checkpoint = save_atomically


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def check_resumable(
    path: str | Path, checkpoints: Checkpoints | None = None
) -> int:
    """The iterations behind a checkpoint that a run can go on from.

    An OSError says that it cannot be opened, a ValueError that it is not
    whole, does not load safely, or holds weights without the state of a run.
    """
    try:
        checkpoint = (checkpoints or Checkpoints()).read(str(path))
    except UnsafeCheckpointError as error:
        raise ValueError(
            f'{error}. To resume from it, if you trust who made it, set '
            'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for this run; the checkpoints '
            'that it saves will not need it'
        ) from error
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    parts = ('meta', 'message_hub', 'state_dict')
    if any(part not in checkpoint for part in parts):
        raise ValueError(
            f'{path} cannot be resumed from: it does not hold the state of a '
            f'run ({", ".join(parts)}); to start from its weights name it in '
            'load_from'
        )
    return int(checkpoint['meta'].get('iter', 0))


def find_resumable(
    work_dir: str | Path, checkpoints: Checkpoints | None = None
) -> str | None:
    """The newest whole checkpoint of a run, None if there is none.

    The one that was being saved when the run was killed, if that can be
    resumed from; otherwise the one that ``last_checkpoint`` names; otherwise,
    of all ``iter_*.pth`` and ``epoch_*.pth``, the one with most iterations.
    ``checkpoints`` keeps the contents of that one alone.
    """
    work_dir = Path(work_dir)
    checkpoints = checkpoints or Checkpoints()
    tried = set()
    for note in (_COMING, _POINTER):
        named = _read(work_dir / note)
        # The file of that name here comes first: a work dir that was copied
        # still points to where it came from.
        for path in (work_dir / Path(named).name, Path(named)):
            if named and path not in tried:
                if _try(path, checkpoints) is not None:
                    return str(path)
                tried.add(path)
    # By what is in them: clocks can be wrong, and copying changes dates.
    newest = (-1, '')
    saved = {*work_dir.glob('iter_*.pth'), *work_dir.glob('epoch_*.pth')}
    for path in saved - tried:
        iterations = _try(path, checkpoints)
        if iterations is not None:
            older, newest = sorted([newest, (iterations, str(path))])
            checkpoints.forget(older[1])
    return newest[1] or None


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ''


def _try(path: Path, checkpoints: Checkpoints) -> int | None:
    """Iterations of a checkpoint; None, with a warning, if it is no use."""
    if not path.is_file():
        return None
    try:
        return check_resumable(path, checkpoints)
    except (OSError, ValueError) as error:
        checkpoints.forget(str(path))
        print_log(str(error), logger='current', level=logging.WARNING)
        return None
