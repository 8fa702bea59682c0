"""PeLK for OpenMMLab: importing this registers everything in it."""

from .version import __version__

try:
    from . import datasets, engine, models
except (ImportError, AttributeError) as error:
    # On meeting `pelk_mm.PeLK` mmengine imports this and drops exactly these
    # two kinds of errors, to say merely that PeLK is not registered.
    raise RuntimeError(
        'pelk_mm cannot be imported, so nothing of it is registered: '
        f'{type(error).__name__}: {error}. It needs torch, mmengine and mmcv, '
        'see requirements/') from error

__all__ = ['__version__', 'datasets', 'engine', 'models']
