"""The scope ``pelk_mm``.

The classes of this project are registered in mmengine's root registries:
every library's scope falls back to the root, so ``type='PeLK'`` is found from
mmpretrain, mmseg and mmdet as soon as ``pelk_mm`` is imported.

The registries below stay empty. They exist for ``type='pelk_mm.PeLK'``: on
meeting that scope mmengine imports this module by name and, through
``locations``, the modules that fill the root, where the look-up then ends. No
``custom_imports`` is needed that way.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='pelk_mm',
    locations=['pelk_mm.models'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='pelk_mm',
    locations=['pelk_mm.engine'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='pelk_mm',
    locations=['pelk_mm.engine'],
)
STRATEGIES = Registry(
    'strategy',
    parent=MMENGINE_STRATEGIES,
    scope='pelk_mm',
    locations=['pelk_mm.engine'],
)
