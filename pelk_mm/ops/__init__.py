"""The peripheral convolution as an operator; knows torch and nothing else."""

# The operator has to be registered before its formulas are.
from .peripheral_conv import available_backends, peripheral_conv2d  # isort: skip
from .flops import box_sum_flops, dense_flops
from .onnx import register_standard
from .sharing_grid import SharingGrid

__all__ = [
    'SharingGrid',
    'available_backends',
    'box_sum_flops',
    'dense_flops',
    'peripheral_conv2d',
]

register_standard()
