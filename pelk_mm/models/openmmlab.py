"""What the models take from OpenMMLab, and what stands in without it.

With torch alone the models are built, run and loaded like any others. They
lack the registry, for configs, and norms that torch does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = [
    'KNOWN_CONVS',
    'MODELS',
    'SAME_CONVS',
    'build_norm_layer',
    'print_log',
]

_NORMS = dict(BN=nn.BatchNorm2d, SyncBN=nn.SyncBatchNorm)


class _Registry:
    """For mmengine's: registers nothing."""

    def register_module(self) -> Callable:
        return lambda module: module

    def build(self, config: Any) -> nn.Module:
        raise ModuleNotFoundError(
            f'{config} can be built by mmengine alone, which is not '
            'installed: pip install mmengine',
            name='mmengine',
        )


def _print_log(
    message: str, logger: str | None = None, level: int = logging.INFO
) -> None:
    """Log a line as packages do outside OpenMMLab."""
    logging.getLogger('pelk_mm').log(level, message)


def _build_norm_layer(cfg: dict, channels: int) -> tuple[str, nn.Module]:
    """For mmcv's, of the kinds that the configs have."""
    options = dict(cfg)
    kind = options.pop('type')
    if kind not in _NORMS:
        raise KeyError(f'{kind!r} needs mmcv, expected one of {list(_NORMS)}')
    trained = options.pop('requires_grad', True)
    norm = _NORMS[kind](channels, **options)
    return kind, norm.requires_grad_(trained)


def _check_absent(error: ModuleNotFoundError) -> None:
    """Raise it unless it is OpenMMLab that is not there."""
    if error.name not in ('mmengine', 'mmcv'):
        raise error


try:
    from mmengine.logging import print_log
    from mmengine.registry import MODELS
except ModuleNotFoundError as error:
    _check_absent(error)
    MODELS, print_log = _Registry(), _print_log

#: mmcv's convolutions that compute what nn.Conv2d does, and those of them
#: that pad as 'same' does for a stride of 1.
KNOWN_CONVS: tuple[type[nn.Conv2d], ...] = (nn.Conv2d,)
SAME_CONVS: tuple[type[nn.Conv2d], ...] = ()
try:
    from mmcv.cnn import build_norm_layer
    from mmcv.cnn.bricks import Conv2dAdaptivePadding
    from mmcv.cnn.bricks.wrappers import Conv2d

    KNOWN_CONVS += Conv2d, Conv2dAdaptivePadding
    SAME_CONVS += (Conv2dAdaptivePadding,)
except ModuleNotFoundError as error:
    _check_absent(error)
    build_norm_layer = _build_norm_layer
