from .derived import make_permanent
from .layer_norm import LayerNorm2d
from .peripheral_conv import (
    PartialPeripheralConv2d,
    PeripheralConv2d,
    SmallConv2d,
)

__all__ = [
    'LayerNorm2d',
    'PartialPeripheralConv2d',
    'PeripheralConv2d',
    'SmallConv2d',
    'make_permanent',
]
