from .activation_checkpoint import checkpoint_keeping_stats
from .kernel_growth import move_kernels, move_masks, read_grids, regrid
from .pretrained import (
    backbone_prefixes,
    check_pretrained,
    check_state_dict,
    init_pretrained,
    is_pretrained,
    load_pretrained,
    other_stem,
    pretrained_of,
)
from .safe_loading import (
    CheckpointError,
    Checkpoints,
    UnsafeCheckpointError,
    read_checkpoint,
    weights_of,
)

__all__ = [
    'CheckpointError',
    'Checkpoints',
    'UnsafeCheckpointError',
    'backbone_prefixes',
    'check_pretrained',
    'check_state_dict',
    'checkpoint_keeping_stats',
    'init_pretrained',
    'is_pretrained',
    'load_pretrained',
    'move_kernels',
    'move_masks',
    'other_stem',
    'pretrained_of',
    'read_checkpoint',
    'read_grids',
    'regrid',
    'weights_of',
]
