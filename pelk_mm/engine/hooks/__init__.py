from .dynamic_sparsity_hook import DynamicSparsityHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = ['DynamicSparsityHook', 'SafeCheckpointHook']
