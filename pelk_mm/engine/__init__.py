"""What runs around a model: hooks and optimizer constructors."""

from .channels import check_channels
from .hooks import DynamicSparsityHook, SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'DynamicSparsityHook', 'LayerDecayOptimWrapperConstructor',
    'SafeCheckpointHook', 'check_channels'
]
