"""What a run shows on the screen, and what only its log file keeps."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner

#: How messages begin that are hundreds of lines long, or that whoever runs a
#: tool can do nothing about.
_FILE_ONLY = (
    f'\n{"-" * 60}\nSystem environment:',
    'Config:\n',
    'Distributed training is not used, all SyncBatchNorm',
    'Hooks will be executed in the following order:',
    'learning-rate decay by depth:',
    'The prefix is not set in metric class',
    '"FileClient" will be deprecated in future',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    'Exp name: ',
)


def _is_short(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_FILE_ONLY)


class _OnScreen:
    """What is added to a class of runners; see :func:`with_short_screen`."""

    logger: Any

    def _log_env(self, *args: Any) -> None:
        # The first thing that runners do with their logger.
        for handler in self.logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_short)
        super()._log_env(*args)  # type: ignore[misc]
        path = self.logger.log_file
        if path is not None:
            self.logger.info(f'log with environment, config, hooks: {path}')


def with_short_screen(kind: type[Runner]) -> type[Runner]:
    """The runner class, with long reports in its log file only."""
    return type(kind.__name__, (_OnScreen, kind), {})


class FirstLine(Hook):
    """Has the first iteration logged, without waiting for the interval."""

    # Behind LoggerHook.
    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._intervals: list[tuple[LoggerHook, int]] = []

    def before_train(self, runner: Runner) -> None:
        """Have every iteration logged."""
        hooks = [h for h in runner.hooks if isinstance(h, LoggerHook)]
        self._intervals = [(hook, hook.interval) for hook in hooks]
        for hook in hooks:
            hook.interval = 1

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """After the first iteration, go back to the interval."""
        for hook, interval in self._intervals:
            hook.interval = interval
        self._intervals = []
