from .derived import make_permanent
from .drop_path import DropPath
from .enlarged_conv import EnlargedConv2d, embed_weights, why_not_enlarged
from .grn import GRN
from .layer_norm import LayerNorm2d, reach_all
from .partial_conv import PartialPeripheralConv2d
from .peripheral_conv import PeripheralConv2d, SmallConv2d, density
from .pointwise import pointwise_mlp
from .residual import add_residual_branch

__all__ = [
    'GRN',
    'DropPath',
    'EnlargedConv2d',
    'LayerNorm2d',
    'PartialPeripheralConv2d',
    'PeripheralConv2d',
    'SmallConv2d',
    'add_residual_branch',
    'density',
    'embed_weights',
    'make_permanent',
    'pointwise_mlp',
    'reach_all',
    'why_not_enlarged',
]
