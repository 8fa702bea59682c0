from .activation_checkpoint import checkpoint_keeping_stats
from .checkpoint import (
    backbone_prefixes,
    check_pretrained,
    check_state_dict,
    is_pretrained,
    load_pretrained,
    read_checkpoint,
    weights_of,
)
from .kernel_growth import move_kernels, move_masks, read_grids, regrid

__all__ = [
    'backbone_prefixes', 'check_pretrained', 'check_state_dict',
    'checkpoint_keeping_stats', 'is_pretrained', 'load_pretrained',
    'move_kernels', 'move_masks', 'read_checkpoint', 'read_grids', 'regrid',
    'weights_of'
]
