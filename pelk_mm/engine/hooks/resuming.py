"""Whether the optimizer and schedule of a checkpoint are this run's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch.optim import Optimizer

from ...utils.config import unwrapped
from ...utils.errors import LaunchError
from ...utils.text import first_few
from ..strategies import plain_name

_ANEW = 'start a new training from its weights: load_from, without --resume'
#: What people change between runs.
_RATES = ('lr', 'weight_decay')


def check_resumed(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the optimizer that will go on from it.

    To be called before the optimizer is loaded. Warns where the checkpoint
    has other rates or another schedule, because resuming keeps those, and
    where it has no optimizer.

    Raises:
        LaunchError: If the checkpoint's optimizer is of another kind, has
            other parameters, or has them in other groups.
    """
    states = checkpoint.get('optimizer')
    if states is None:
        _warn(
            'the checkpoint holds no optimizer, as a best_*.pth: moments and '
            'learning rates start from the beginning'
        )
        return
    wrappers = runner.optim_wrapper
    if not isinstance(wrappers, OptimWrapperDict):
        states, wrappers = {'': states}, {'': wrappers}
    model = unwrapped(runner.model)
    names = {id(p): plain_name(n) for n, p in model.named_parameters()}
    changed = list(_changed_schedule(runner, checkpoint))
    for key, wrapper in wrappers.items():
        if not isinstance(wrapper, OptimWrapper) or key not in states:
            continue
        saved = states[key]['param_groups']
        groups = wrapper.optimizer.param_groups
        if any(isinstance(p, str) for g in saved for p in g['params']):
            # FSDP goes by their names.
            continue
        _check_kind(saved, wrapper.optimizer)
        _check_groups(saved, groups, names)
        changed += _changed_rates(saved, groups)
    if changed:
        _warn(
            "resuming keeps the checkpoint's rates and schedule, not the "
            f"config's: {'; '.join(changed)}. To train with the config's, "
            f'{_ANEW}'
        )


def _check_kind(
    saved: Sequence[Mapping[str, Any]], optimizer: Optimizer
) -> None:
    """A LaunchError where a step would ask for what was not saved."""
    # Switches are what newer versions of torch add, and fill in.
    lacking = [
        name
        for name, value in optimizer.defaults.items()
        if isinstance(value, (int, float, tuple))
        and not isinstance(value, bool)
        and any(name not in group for group in saved)
    ]
    if lacking:
        raise LaunchError(
            "the checkpoint's optimizer is not this run's "
            f'{type(optimizer).__name__}: it has no {first_few(lacking)}. '
            f'Resume with the optimizer that it was saved with, or {_ANEW}'
        )


def _check_groups(
    saved: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
) -> None:
    """A LaunchError unless the groups hold the same parameters."""
    now = [[names.get(id(p), '?') for p in g['params']] for g in groups]
    # Constructors that decay by depth note the names, mmengine's does not.
    named = all('param_names' in group for group in saved)
    then = [g['param_names' if named else 'params'] for g in saved]
    if then == now or (not named and _sizes(then) == _sizes(now)):
        return
    text = (
        f'it has {sum(_sizes(then))} parameters in {len(then)} groups, this '
        f'run {sum(_sizes(now))} in {len(now)}'
    )
    if named:
        old, new = (
            {n: None for group in part for n in group} for part in (then, now)
        )
        for what, some, other in (
            ('trained then, not now', old, new),
            ('train now, not then', new, old),
        ):
            rest = [name for name in some if name not in other]
            if rest:
                text += f'; {what}: {first_few(rest)}'
    raise LaunchError(
        f"the checkpoint's optimizer differs from this run's: {text}. Resume "
        'with '
        'the frozen_stages, layers and paramwise_cfg that it was saved with, '
        f'or {_ANEW}'
    )


def _sizes(groups: Sequence[Sequence]) -> list[int]:
    return [len(group) for group in groups]


def _changed_rates(
    saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for rate in _RATES:
        # Schedulers keep what they started from.
        then, now = (
            [g.get(f'initial_{rate}', g.get(rate)) for g in some]
            for some in (saved, groups)
        )
        pairs = [
            (float(old), float(new))
            for old, new in zip(then, now, strict=True)
            if None not in (old, new)
        ]
        differ = [pair for pair in pairs if not isclose(*pair)]
        if differ:
            old, new = differ[-1]
            of = f' in {len(differ)} of {len(then)} groups'
            yield (
                f'{rate} {old:.4g}, not {new:.4g}{of if len(then) > 1 else ""}'
            )


def _changed_schedule(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> Iterator[str]:
    saved, schedulers = (
        checkpoint.get('param_schedulers'),
        runner.param_schedulers,
    )
    if not isinstance(saved, list) or not isinstance(schedulers, list):
        return
    if len(saved) != len(schedulers):
        yield f'{len(saved)} schedulers, not {len(schedulers)}'
        return
    for old, new in zip(saved, schedulers, strict=True):
        spans = [(old['begin'], old['end']), (new.begin, new.end)]
        if spans[0] != spans[1]:
            then, now = (f'{begin} to {end}' for begin, end in spans)
            yield f'{type(new).__name__} from {then}, not {now}'


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
