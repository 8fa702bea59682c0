"""What went wrong while something was built from a config, in words."""

from __future__ import annotations

import traceback
from importlib import import_module
from inspect import signature
from re import search
from types import ModuleType

from mmengine.registry import Registry, build_functions

from ..ops.checks import did_you_mean


class LaunchError(ValueError):
    """The run cannot start or go on; the message is for who started it."""


#: Errors that a wrong config is the likely reason for. Others, such as an
#: AttributeError, are more likely a defect.
LIKELY = (
    TypeError,
    ValueError,
    LookupError,
    AssertionError,
    ImportError,
    OSError,
    RuntimeError,
)


def from_config(error: BaseException) -> bool:
    """Whether a config explains it: raised while building from one."""
    return isinstance(error, LIKELY) and _innermost_build(error) is not None


def explain(error: BaseException) -> str:
    """An error in words: ``"PeLK: unknown arch 'tinny', expected …"``."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        # Its text is the repr of its key.
        text = str(error.args[0])
    build = _innermost_build(error)
    if build is None:
        return text or type(error).__name__
    kind = build.get('obj_cls')
    name = getattr(kind, '__name__', None)
    unknown = search(r'(\S+) is not in the (.+?) registry', text)
    if unknown and isinstance(error, KeyError):
        hint = did_you_mean(unknown[1], registered(build['registry']))
        return (
            f'there is no {unknown[1]} in the registry {unknown[2]}{hint}; '
            'what is not of the library has to be named in custom_imports'
        )
    argument = search(r"unexpected keyword argument '(\w+)'", text)
    if argument and text.startswith(f'{name}.__init__()'):
        rest = ('args', 'kwargs')
        known = [key for key in signature(kind).parameters if key not in rest]
        hint = did_you_mean(argument[1], known)
        wrong = f'{name} has no argument {argument[1]!r}{hint}'
        return f'{wrong}; it has {", ".join(known)}'
    if not isinstance(error, (TypeError, ValueError)) or not text:
        text = f'{type(error).__name__}: {text}'
    return f'{name}: {text}' if name else text


def _innermost_build(error: BaseException) -> dict | None:
    """Variables of the mmengine call that was building what failed, if any.

    Nothing else tells: mmengine lets errors through as they are.
    """
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is build_functions.build_from_cfg.__code__:
            found = frame.f_locals
    return found


def registered(registry: Registry | None) -> list[str]:
    """Names in a registry and in those that it falls back to."""
    names: list[str] = []
    while registry is not None:
        names += registry.module_dict
        registry = registry.parent
    return names


def need(*names: str) -> list[ModuleType]:
    """Import packages; a LaunchError says what to install where one lacks."""
    modules, missing = [], []
    for name in names:
        try:
            modules.append(import_module(name))
        except ImportError as error:
            missing.append(f'{name} ({error})')
    if missing:
        raise LaunchError(
            f'this needs packages that cannot be imported: '
            f'{", ".join(missing)}. Install them with "pip install -r '
            'requirements/deploy.txt", or "pip install -e .[deploy]" for '
            'newer versions'
        )
    return modules
