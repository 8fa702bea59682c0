"""What every room may use: command line, errors, files, output, configs."""

from contextlib import suppress
from importlib import import_module


def register_all_modules() -> None:
    """Register what is here and in the task libraries that are installed.

    :func:`mmengine.hub.get_model` calls it by this name.
    """
    import_module('pelk_mm')
    for library in ('mmpretrain', 'mmseg', 'mmdet'):
        with suppress(ModuleNotFoundError):
            utils = import_module(f'{library}.utils')
            utils.register_all_modules(init_default_scope=False)
