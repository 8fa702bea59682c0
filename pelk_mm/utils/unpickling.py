"""Log histories of mmengine in a checkpoint, read without running code."""

from __future__ import annotations

import _codecs
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def read_histories() -> None:
    """Let torch's restricted unpickler read mmengine's log histories.

    mmengine's ``CheckpointHook`` pickles them, so that torch >= 2.6 refuses
    its files. The names in such a file stand for the classes below, not for
    what they name: those check what they get, and call nothing that it
    chose. Numbers and arrays of numpy are read along, of which histories are
    made; an array elsewhere is of a subclass, and is pickled as an array.
    torch before 2.4 has no such list.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_STAND_INS)


class _Dtype:
    """For ``numpy.dtype``: of booleans, integers and floats alone."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        _require(self.dtype.kind in 'biuf', f'numbers, got {self.dtype}')

    def __setstate__(self, state: tuple) -> None:
        # Sizes, fields and flags in it would be taken over unchecked.
        if state[1] in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """For ``numpy.ndarray``."""

    def __new__(cls, *_: Any) -> _Array:
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, columns_first, data = state
        array = _numbers(dtype, data)
        array = array.reshape(shape, order='F' if columns_first else 'C')
        super().__setstate__(array.__reduce__()[2])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class _Scalar:
    """For ``numpy.core.multiarray.scalar``."""

    def __new__(cls, dtype: _Dtype, data: bytes) -> Any:
        return _numbers(dtype, data)[0]


class _Empty:
    """For ``bytes``, which only those of an empty array need."""

    def __new__(cls) -> Any:
        return b''


class _History(HistoryBuffer):
    """For ``mmengine.logging.HistoryBuffer``."""

    def __init__(self, *_: Any) -> None:
        # Made by what follows it in the file, and without that of no use.
        pass

    def __setstate__(self, state: dict) -> None:
        # Its statistics are methods of the class.
        parts = state['_log_history'], state['_count_history']
        length = state['max_length']
        arrays = all(isinstance(part, _Array) for part in parts)
        _require(arrays and isinstance(length, int), 'a log history')
        log, count = (part.view(np.ndarray) for part in parts)
        self.__dict__.update(
            max_length=length, _log_history=log, _count_history=count
        )
        self.__class__ = HistoryBuffer


class _Method:
    """For ``getattr`` of a history, which finds its statistics."""

    def __new__(cls, owner: Any, name: str) -> None:
        is_history = isinstance(owner, type) and issubclass(owner, _History)
        _require(is_history, 'statistics of a log history')


def _numbers(dtype: Any, data: Any) -> np.ndarray:
    _require(isinstance(dtype, _Dtype), 'a dtype of numbers')
    _require(isinstance(data, bytes), 'their bytes')
    return np.frombuffer(data, dtype.dtype).copy()


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UnpicklingError(f'Can only build {what}')


def _stand_in(kind: type, path: str) -> type:
    """A class that torch takes for what a file calls ``path``."""
    module, _, name = path.rpartition('.')
    return type(name, (kind,), dict(__module__=module, __qualname__=name))


_STAND_INS = [
    _stand_in(_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    _stand_in(_Array, 'numpy.ndarray'),
    _stand_in(_Dtype, 'numpy.dtype'),
    _stand_in(_Empty, 'builtins.bytes'),
    _stand_in(_Method, 'builtins.getattr'),
    # Bytes, in the pickles of protocol 2; torch 2.5 and later know it.
    _codecs.encode,
    # numpy 2 renamed the module.
    *(
        _stand_in(kind, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for kind, name in ((_Array, '_reconstruct'), (_Scalar, 'scalar'))
    ),
]
