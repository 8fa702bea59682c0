"""Checks of plain arguments, shared by the operator and the models."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


def check_integer(
    name: str, value: object, least: int, most: int | None = None
) -> int:
    """``value`` as an int, or TypeError (a bool is none) or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {_typed(value)}')
    _check_range(name, value, least, most)
    return int(value)


def check_number(
    name: str, value: object, least: float, most: float | None = None
) -> float:
    """``value`` as a finite float; errors as of :func:`check_integer`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {_typed(value)}')
    _check_range(name, value, least, most)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f'{name} must be finite, got {_short(value)}')
    return number


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {_typed(value)}')
    return value


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is among ``choices``, else raise ValueError."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        got = _short(value) + did_you_mean(value, choices)
        raise ValueError(f'{name} must be one of {choices}, got {got}')
    return value


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """``' (did you mean …?)'`` if something known is alike, else nothing."""
    if not isinstance(given, str):
        return ''
    found = get_close_matches(given, list(known), 1)
    return f' (did you mean {found[0]!r}?)' if found else ''


def _check_range(
    name: str, value: Any, least: float, most: float | None
) -> None:
    if not least <= value <= (math.inf if most is None else most):
        bound = f'at least {least}' if most is None else f'{least} to {most}'
        got = _short(value) if isinstance(value, int) else value
        raise ValueError(f'{name} must be {bound}, got {got}')


def _typed(value: object) -> str:
    return f'{_short(value)} of type {type(value).__name__}'


def _short(value: object) -> str:
    """What was got, on one line of readable length."""
    if isinstance(value, int) and value.bit_length() > 256:
        # Python refuses to print the longest of them.
        return f'an integer of {value.bit_length()} bits'
    text = ' '.join(repr(value).split())
    return text if len(text) <= 200 else f'{text[:200]}...'
