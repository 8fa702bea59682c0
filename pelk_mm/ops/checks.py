"""Checks of plain arguments, shared by the operator and the models."""

from numbers import Integral, Real


def check_integer(name: str,
                  value: object,
                  least: int,
                  most: int | None = None) -> int:
    """Return ``value`` as an int, or raise naming what was expected.

    Raises:
        TypeError: If it is not an integer (a bool is none).
        ValueError: If it is not within ``[least, most]``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {value!r} of type '
                        f'{type(value).__name__}')
    _check_range(name, value, least, most)
    return int(value)


def check_number(name: str,
                 value: object,
                 least: float,
                 most: float | None = None) -> float:
    """Return ``value`` as a float, or raise naming what was expected.

    Raises:
        TypeError: If it is not a real number (a bool is none).
        ValueError: If it is not within ``[least, most]``, or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got {value!r} of type '
                        f'{type(value).__name__}')
    _check_range(name, value, least, most)
    return float(value)


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r} of '
                        f'type {type(value).__name__}')
    return value


def _check_range(name, value, least, most) -> None:
    if not least <= value <= (float('inf') if most is None else most):
        bound = f'at least {least}' if most is None else f'{least} to {most}'
        raise ValueError(f'{name} must be {bound}, got {value}')
