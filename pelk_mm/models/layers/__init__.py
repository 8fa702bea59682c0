from .derived import make_permanent
from .grn import GRN
from .layer_norm import LayerNorm2d, reach_all
from .peripheral_conv import (
    PartialPeripheralConv2d,
    PeripheralConv2d,
    SmallConv2d,
    density,
)

__all__ = [
    'GRN',
    'LayerNorm2d',
    'PartialPeripheralConv2d',
    'PeripheralConv2d',
    'SmallConv2d',
    'density',
    'make_permanent',
    'reach_all',
]
