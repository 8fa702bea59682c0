"""Runners without what takes most of the time of starting one."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def short_logs() -> Iterator[None]:
    """Neither ask compilers what they are, nor lay out the text of a config.

    That text, which is in every checkpoint too, is Python all the same.
    """

    def as_it_is(text: str, **_) -> tuple[str, bool]:
        return text, True

    with (
        mock.patch('mmengine.runner.runner.collect_env', dict),
        mock.patch('yapf.yapflib.yapf_api.FormatCode', as_it_is),
        # mmengine has it here; its fork imports it at each use.
        mock.patch('mmengine.config.config.FormatCode', as_it_is, create=True),
    ):
        yield
