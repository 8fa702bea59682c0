from .activation_checkpoint import checkpoint_keeping_stats
from .convnext import (
    ConvNeXt,
    as_arguments,
    as_pelk,
    find_convnexts,
    pelk_arguments,
)
from .kernel_growth import move_kernels, move_masks, read_grids, regrid
from .pretrained import (
    backbone_prefixes,
    check_pretrained,
    check_state_dict,
    initialise,
    is_pretrained,
    load_pretrained,
    other_stem,
    parts_of,
    prepare_weights,
    pretrained_of,
    warn_unread,
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
    'ConvNeXt',
    'UnsafeCheckpointError',
    'as_arguments',
    'as_pelk',
    'backbone_prefixes',
    'check_pretrained',
    'check_state_dict',
    'checkpoint_keeping_stats',
    'find_convnexts',
    'initialise',
    'is_pretrained',
    'load_pretrained',
    'move_kernels',
    'move_masks',
    'other_stem',
    'parts_of',
    'pelk_arguments',
    'prepare_weights',
    'pretrained_of',
    'read_checkpoint',
    'read_grids',
    'regrid',
    'warn_unread',
    'weights_of',
]
