"""Less to read in a tool's output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def errors_only(*loggers: logging.Logger) -> Iterator[None]:
    """Silence what some loggers say below errors."""
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries log below errors while building models.

    Their advice is for those who are about to train.
    """
    with errors_only(MMLogger.get_current_instance()):
        yield
