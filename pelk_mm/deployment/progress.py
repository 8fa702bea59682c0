"""What is being done, and for how long."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


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
            console=Console(file=sys.stderr))
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
