"""What differs between tested sets of packages, made the same here.

OpenMMLab's own packages or the maintained fork of them, one numpy or the
other, mmcv with its compiled operators or without (mmcv-lite): nothing else in
this project asks which it runs on. :mod:`pelk_mm.distributions` says what the
sets are, ``docs/versions.md`` which were tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import mmcv
import torch
from mmcv.image import photometric
from mmcv.utils import ext_loader
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import checkpoint

from .distributions import FAMILIES
from .utils.errors import LaunchError
from .utils.unpickling import read_histories


def apply() -> None:
    """Make the libraries behave alike; done on importing pelk_mm."""
    read_histories()
    # Whatever imports mmcv.ops has to come later.
    if not has_ops():
        ext_loader.load_ext = lambda name, functions: _NoOps()
    # mmpretrain's ColorJitter(hue=...) calls it, and numpy 2 raises there.
    for module in (mmcv, mmcv.image, photometric):
        module.adjust_hue = adjust_hue
    # The fork's mmengine loads a checkpoint that torch refuses once more,
    # without torch's safeguard, and only logs that. Running the code that
    # such a file may hold is not for a library to decide.
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = _load
    # The fork kept the names of the packages that it replaces, so that
    # `_base_ = 'mmseg::...'` asks for mmsegmentation to be installed.
    for module, package in FAMILIES['onedl'].items():
        if module in MODULE2PACKAGE:
            with suppress(PackageNotFoundError):
                version(package)
                MODULE2PACKAGE[module] = package


def has_ops() -> bool:
    """Whether mmcv has its compiled operators; mmcv-lite has none."""
    return find_spec('mmcv._ext') is not None


def require_ops(what: str) -> None:
    """Raise a LaunchError if mmcv does not have what ``what`` needs."""
    if not has_ops():
        raise LaunchError(
            f"{what} needs mmcv's compiled operators, and mmcv is installed "
            'without them, as mmcv-lite is; "python -m pelk_mm.doctor" says '
            'how to build them'
        )


class _NoOps:
    """Stands for mmcv's compiled operators where there are none.

    mmsegmentation imports mmcv.ops, which would fail there, for a few models
    that are seldom used. With this all of mmcv.ops can be imported, what is
    written in Python alone works, and the rest says what is missing when it
    is called.
    """

    def __getattr__(self, name: str) -> Callable:
        # mmcv's collect_env asks these two, for a report.
        if name in ('get_compiler_version', 'get_compiling_cuda_version'):
            return lambda: 'n/a'
        return lambda *args, **kwargs: require_ops(f'mmcv.ops: {name}')


_adjust_hue = photometric.adjust_hue


class _Hue(float):
    """A shift of the hue, which times 255 is a byte: numpy 2 wraps none."""

    def __mul__(self, other: float) -> int:
        return int(float(self) * other) % 256


@wraps(_adjust_hue)
def adjust_hue(img: Any, hue_factor: float, backend: Any = None) -> Any:
    """mmcv's, for negative shifts with numpy 2 too, and the same otherwise."""
    return _adjust_hue(img, _Hue(hue_factor), backend)


def _load(
    file: Any, map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """With the fork's own signature; None leaves it to torch."""
    return torch.load(file, map_location, weights_only=weights_only)
