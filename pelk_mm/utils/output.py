"""Less to read in a tool's output."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import (
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


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

    Args:
        *loggers (str): Names of Python's loggers.
    """
    muted = _errors_only(*map(logging.getLogger, loggers))
    with muted, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class Steps:
    """Steps of unknown length on stderr, each with the time that it takes.

    Example:
        >>> with Steps() as steps:
        ...     steps.next('reading')
        ...     steps.next('writing')
    """

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text='✓'),
            TextColumn('{task.description}', markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def next(self, text: str) -> None:
        """End the step before, if any, and begin one."""
        self._finish()
        self._task = self._progress.add_task(text, total=None)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=1, completed=1)
