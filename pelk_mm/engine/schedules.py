"""Whether schedules and checkpoints go with the length of a training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..utils.config import type_name
from ..utils.errors import LaunchError
from ..utils.text import first_few


def leave_out_late(config: Config) -> list[str]:
    """Take out schedulers that begin when the training has ended.

    They would change nothing. One without an ``end`` is an error in mmengine,
    as where a recipe of 300 epochs is tried for one with
    ``train_cfg.max_epochs=1``.

    Returns:
        list[str]: One line for each that was taken out.
    """
    loop = config.get('train_cfg') or {}
    given = config.get('param_scheduler')
    if not isinstance(given, (list, tuple)):
        return []
    kept, lines = [], []
    for scheduler in given:
        by_epoch = scheduler.get('by_epoch', True)
        unit, field = 'iteration', 'max_iters'
        if by_epoch:
            unit, field = 'epoch', 'max_epochs'
        begin, length = scheduler.get('begin', 0), loop.get(field)
        if length is None or begin < length:
            kept.append(scheduler)
            continue
        lines.append(
            f'{type_name(scheduler)} begins at {unit} {begin} and the '
            f'training ends after {length}: left out'
        )
    if lines:
        config.param_scheduler = kept
    return lines


def check_schedule(runner: Runner) -> list[str]:
    """What runs, and trains otherwise than its schedule says.

    Schedulers that end after the training does (a warm-up longer than it, a
    recipe of 90 epochs cut to 1), and schedulers and checkpoints that count
    epochs where ``IterBasedTrainLoop`` has but one.

    Args:
        runner (Runner): Its train loop and ``param_schedulers`` built, as
            they are in and after ``before_train``.

    Returns:
        list[str]: One line for each thing to warn about.

    Raises:
        LaunchError: If a scheduler would end the training with an error.
    """
    return [*_late(runner), *_by_epoch(runner)]


def _late(runner: Runner) -> Iterator[str]:
    loop = runner.train_loop
    late = []
    for scheduler in _schedulers(runner):
        end, by_epoch = _end(scheduler), scheduler.by_epoch
        if by_epoch and isinstance(loop, IterBasedTrainLoop):
            continue
        length = loop.max_epochs if by_epoch else loop.max_iters
        kind = type(scheduler).__name__
        unit = 'epoch' if by_epoch else 'iteration'
        if end > length:
            late.append(f'{kind} at {unit} {end}')
        steps = min(length, scheduler.end - 1) - scheduler.begin
        if steps > getattr(scheduler, 'total_steps', steps):
            raise LaunchError(
                f'{kind} would end the training with an error after '
                f'{scheduler.total_steps} {unit}s: set its total_steps to the '
                f'length of the training, {length}'
            )
    if late:
        length = f'{loop.max_iters} iterations'
        if not isinstance(loop, IterBasedTrainLoop):
            length = f'{loop.max_epochs} epochs ({length})'
        yield (
            f'the training ends after {length}, before its schedule does '
            f'({first_few(dict.fromkeys(late))}); give the schedulers in '
            'param_scheduler its length (end, T_max, milestones)'
        )


def _by_epoch(runner: Runner) -> Iterator[str]:
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        return
    kinds = [
        type(scheduler).__name__
        for scheduler in _schedulers(runner)
        # Those that wait for metrics are called after each validation.
        if scheduler.by_epoch and not hasattr(scheduler, 'need_val_args')
    ]
    if kinds:
        yield (
            f'{first_few(dict.fromkeys(kinds))} in param_scheduler counts '
            'epochs, of which IterBasedTrainLoop has one: the rate stays '
            'where it starts; set by_epoch=False, with begin and end in '
            'iterations'
        )
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch:
            yield (
                f'{type(hook).__name__} counts epochs, of which '
                'IterBasedTrainLoop has one: nothing is saved before the '
                'training ends; set by_epoch=False, with interval in '
                'iterations'
            )


def _schedulers(runner: Runner) -> list[Any]:
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        # One list for each optimizer.
        return list(chain(*schedulers.values()))
    return schedulers


def _end(scheduler: Any) -> int:
    """Where a scheduler is done; mmengine's runner sets ``end`` by default."""
    steps = [getattr(scheduler, 'T_max', 0)]
    steps += getattr(scheduler, 'milestones', ())
    return max(scheduler.end, scheduler.begin + max(steps))
