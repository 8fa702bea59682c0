"""What the two tested rows of packages do differently, made the same here.

And what both do with one numpy only.

Nothing else in this project asks which row it runs on.
:mod:`pelk_mm.distributions` says what the rows are, ``docs/versions.md`` which
were tested.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mmcv
import torch
from mmcv.image import photometric
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import checkpoint

from .distributions import ROWS
from .utils.unpickling import read_histories


def apply() -> None:
    """Make mmengine behave alike in both rows; done on importing pelk_mm."""
    read_histories()
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
    for module, package in ROWS['onedl'].items():
        if module in MODULE2PACKAGE:
            with suppress(PackageNotFoundError):
                version(package)
                MODULE2PACKAGE[module] = package


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
