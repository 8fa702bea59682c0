"""The scope ``pelk_mm``.

The classes of this project are registered in mmengine's root registries:
every library's scope falls back to the root, so ``type='PeLK'`` is found from
mmpretrain, mmseg and mmdet as soon as ``pelk_mm`` is imported.

The registries below stay empty. They exist for ``type='pelk_mm.PeLK'``: on
meeting that scope mmengine imports this module by name and, through
``locations``, the modules that fill the root, where the look-up then ends. No
``custom_imports`` is needed that way.
"""

from mmengine import registry as root
from mmengine.registry import Registry


def _below(parent: Registry, location: str) -> Registry:
    return Registry(
        parent.name, parent=parent, scope='pelk_mm', locations=[location]
    )


MODELS = _below(root.MODELS, 'pelk_mm.models')
HOOKS = _below(root.HOOKS, 'pelk_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _below(
    root.OPTIM_WRAPPER_CONSTRUCTORS, 'pelk_mm.engine'
)
STRATEGIES = _below(root.STRATEGIES, 'pelk_mm.engine')
