"""The peripheral convolution as an operator; knows torch and nothing else."""

from .peripheral_conv import available_backends, peripheral_conv2d
from .sharing_grid import SharingGrid

__all__ = ['SharingGrid', 'available_backends', 'peripheral_conv2d']
