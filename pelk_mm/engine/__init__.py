"""What runs around a model: hooks, optimizer constructors, strategies."""

from ..models.channels import check_channels
from .hooks import DynamicSparsityHook, SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor
from .strategies import FullStateFSDPStrategy

__all__ = [
    'DynamicSparsityHook',
    'FullStateFSDPStrategy',
    'LayerDecayOptimWrapperConstructor',
    'SafeCheckpointHook',
    'check_channels',
]
