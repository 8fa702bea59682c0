"""What runs around a model: hooks and optimizer constructors."""

from .hooks import SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor', 'SafeCheckpointHook']
