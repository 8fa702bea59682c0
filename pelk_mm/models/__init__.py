"""Layers and the backbone; knows mmengine and mmcv, no task library."""

from .backbones import EnlargedKernels, PeLK, enlarge_kernels
from .layers import PartialPeripheralConv2d, PeripheralConv2d

__all__ = [
    'EnlargedKernels',
    'PartialPeripheralConv2d',
    'PeLK',
    'PeripheralConv2d',
    'enlarge_kernels',
]
