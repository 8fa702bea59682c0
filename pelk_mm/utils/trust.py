"""Whether reading a file may run the code in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: torch's own switches, for every torch.load of a process.
_SAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_YES = ('1', 'y', 'yes', 'true')


@contextmanager
def weights_only(always: bool = True) -> Iterator[None]:
    """Let no ``torch.load`` run code, whoever calls it and however.

    mmengine loads what it downloads with ``weights_only=False``. Nothing
    changes where the environment says
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``. ``always=False`` leaves it to each
    call, also within another such context.
    """
    before = os.environ.pop(_SAFE, None)
    if always and not everything_is_trusted():
        os.environ[_SAFE] = '1'
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE, None)
        else:
            os.environ[_SAFE] = before


def everything_is_trusted() -> bool:
    """Whether the environment lets every ``torch.load`` run code."""
    return os.environ.get(_UNSAFE, '').lower() in _YES
