"""What a parameter is, by which weight decay is chosen."""

from __future__ import annotations

from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

from ...models.layers import PeripheralConv2d
from ..strategies import plain_name

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
#: Not 1-D, yet no weights that decay should draw to zero.
_EMBEDDINGS = ('pos_embed', 'cls_token', 'mask_token')
#: Factors of the weight decay by kind of parameter, where nothing is said.
DECAYS = dict(norm=0, bias=0, flat=0, dwconv=1, dcn_offset=1, weight=1)


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """A kind, as :data:`DECAYS` has them, for every parameter name."""
    kinds = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NORMS):
                kind = 'norm'
            elif isinstance(module, nn.Conv2d) and 'conv_offset' in prefix:
                kind = 'dcn_offset'
            elif name == 'bias':
                kind = 'bias'
            elif parameter.ndim <= 1 or name in _EMBEDDINGS:
                kind = 'flat'
            elif _is_depthwise(module):
                kind = 'dwconv'
            else:
                kind = 'weight'
            kinds[plain_name(f'{prefix}.{name}' if prefix else name)] = kind
    return kinds


def _is_depthwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.in_channels == module.groups
    return isinstance(module, PeripheralConv2d)
