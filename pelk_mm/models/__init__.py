"""Layers and the backbone; knows mmengine and mmcv, no task library."""

from .backbones import PeLK
from .layers import PartialPeripheralConv2d, PeripheralConv2d

__all__ = ['PartialPeripheralConv2d', 'PeLK', 'PeripheralConv2d']
