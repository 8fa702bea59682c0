"""What runs around a model: hooks, optimizer constructors, strategies."""

from . import flop_count
from .hooks import DynamicSparsityHook, SafeCheckpointHook
from .optimizers import LayerDecayOptimWrapperConstructor
from .rehearsal import RehearsalHook
from .strategies import FullStateFSDPStrategy

__all__ = [
    'DynamicSparsityHook',
    'FullStateFSDPStrategy',
    'LayerDecayOptimWrapperConstructor',
    'RehearsalHook',
    'SafeCheckpointHook',
]

flop_count.register()
