"""What runs around a model: hooks and optimizer constructors."""

from .channels import check_channels
from .hooks import SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'LayerDecayOptimWrapperConstructor', 'SafeCheckpointHook', 'check_channels'
]
