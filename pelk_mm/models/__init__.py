"""Layers and the backbone; they need torch, and no task library ever."""

from .backbones import EnlargedKernels, PeLK, enlarge_kernels
from .layers import PartialPeripheralConv2d, PeripheralConv2d
from .utils import load_pretrained

__all__ = [
    'EnlargedKernels',
    'PartialPeripheralConv2d',
    'PeLK',
    'PeripheralConv2d',
    'enlarge_kernels',
    'load_pretrained',
]
