"""Less to read in a tool's output."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mmengine.logging import MMLogger
from rich import progress
from rich.console import Console


@contextmanager
def _errors_only(*loggers: logging.Logger) -> Iterator[None]:
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quiet() -> AbstractContextManager[None]:
    """Silence what the libraries log below errors while building models.

    Their advice is for those who are about to train.
    """
    return _errors_only(MMLogger.get_current_instance())


@contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Without warnings, and without what some loggers say below errors.

    An exporter talks of what it tries to those who write exporters.
    """
    muted = _errors_only(*map(logging.getLogger, loggers))
    with muted, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


#: Warnings of libraries that whoever runs a tool can do nothing about: by the
#: module that warns, how they begin.
_NOISE = (
    ('mmdet', 'To copy construct from a tensor'),
    ('mmseg', '``build_loss`` would be deprecated soon'),
    ('mmseg', 'Default ``avg_non_ignore`` is False'),
    ('mmseg', 'The draw is False, it means that the hook'),
    ('mmengine', 'The shape of value will convert from'),
    ('mmengine', 'Setting OMP_NUM_THREADS environment variable'),
    ('mmengine', 'Setting MKL_NUM_THREADS environment variable'),
    ('mmseg', '`reduce_zero_label` will be deprecated'),
)


@contextmanager
def fewer_warnings() -> Iterator[None]:
    """Without warnings that nobody can act on, and each other one once.

    Python shows a warning once for a place in the code, and again after any
    filter was changed: a model that is built twice would warn twice.
    """
    with warnings.catch_warnings():
        for module, text in _NOISE:
            warnings.filterwarnings('ignore', re.escape(text), module=module)
        show, shown = warnings.showwarning, set()

        def show_once(message, category, *where) -> None:
            if (str(message), category) not in shown:
                shown.add((str(message), category))
                show(message, category, *where)

        warnings.showwarning = show_once
        yield


class Steps(progress.Progress):
    """Steps of unknown length on stderr, each with the time that it takes."""

    def __init__(self) -> None:
        super().__init__(
            progress.SpinnerColumn(finished_text='✓'),
            progress.TextColumn('{task.description}', markup=False),
            progress.TimeElapsedColumn(),
            console=Console(file=sys.stderr),
        )

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._finish()
        super().__exit__(kind, error, traceback)

    def next(self, text: str) -> None:
        """End the step before, if any, and begin one."""
        self._finish()
        self.add_task(text, total=None)

    def _finish(self) -> None:
        for task in self.task_ids[-1:]:
            self.update(task, total=1, completed=1)
