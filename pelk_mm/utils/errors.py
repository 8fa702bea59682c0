"""What went wrong while something was built from a config, in words."""

from __future__ import annotations

import traceback
from importlib import import_module
from inspect import signature
from re import search
from types import ModuleType

from mmengine.optim import DefaultOptimWrapperConstructor
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
    if not isinstance(error, LIKELY):
        return False
    return bool(_innermost_build(error) or _other_constructor(error))


def explain(error: BaseException) -> str:
    """An error in words: ``"PeLK: unknown arch 'tinny', expected …"``."""
    text = str(error)
    constructor = _other_constructor(error)
    if constructor is not None:
        return _our_constructor(constructor) + (f' ({text})' if text else '')
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
            'modules outside the library must be named in custom_imports'
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


def _other_constructor(
    error: BaseException,
) -> DefaultOptimWrapperConstructor | None:
    """The libraries' layer decay that does not know a model's backbone."""
    if isinstance(error, NotImplementedError):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            caller = frame.f_locals.get('self')
            if isinstance(caller, DefaultOptimWrapperConstructor):
                return caller
    return None


def _our_constructor(other: DefaultOptimWrapperConstructor) -> str:
    """Why there is no optimizer, and how to write the layer decay of PeLK."""
    cfg = other.paramwise_cfg
    ours = dict(decay_rate=cfg.get('decay_rate', cfg.get('layer_decay_rate')))
    if cfg.get('decay_type') == 'stage_wise':
        ours |= dict(decay_type='stage_wise', num_layers=cfg['num_layers'])
    fields = ', '.join(f'{key}={value!r}' for key, value in ours.items())
    return (
        f"{type(other).__name__} does not know the depths of the model's "
        'backbone. For PeLK, and all that have a get_layer_depth, write '
        "optim_wrapper.constructor='LayerDecayOptimWrapperConstructor' with "
        f'paramwise_cfg=dict({fields})'
    )


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
            f'{", ".join(missing)}. Install them with: pip install '
            '"pelk_mm[deploy]"; in a clone, for the tested versions: '
            'pip install -r requirements/deploy.txt'
        )
    return modules
