"""Packages that only deployment needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..engine.launch import LaunchError


def need(*names: str) -> list[ModuleType]:
    """Import packages, or say what to install.

    Args:
        *names (str): Such as ``'onnx'``.

    Returns:
        list[ModuleType]: In the same order.

    Raises:
        LaunchError: If one cannot be imported.
    """
    modules, missing = [], []
    for name in names:
        try:
            modules.append(import_module(name))
        except ImportError as error:
            missing.append(f'{name} ({error})')
    if missing:
        raise LaunchError(
            f'this needs packages that cannot be imported: '
            f'{", ".join(missing)}. Install them with '
            '"pip install -r requirements/deploy.txt", or '
            '"pip install -e .[deploy]" for newer versions'
        )
    return modules
