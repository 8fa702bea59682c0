"""What runs around a model: hooks and optimizer constructors."""

from .hooks import DynamicSparsityHook, SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'DynamicSparsityHook', 'LayerDecayOptimWrapperConstructor',
    'SafeCheckpointHook'
]
