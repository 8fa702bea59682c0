"""Whether schedules and checkpoints go with the length of a training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..utils.errors import LaunchError
from ..utils.text import first_few


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
