"""PeLK for OpenMMLab: importing this registers everything in it."""

import sys

from .version import __version__


def _examined() -> bool:
    """Whether this is ``python -m pelk_mm.doctor``, looking for its module.

    It has to start where the imports below do not work, or end the process.
    """
    # While Python looks for the module, '-m' stands for it in sys.argv.
    return sys.argv[:1] == ['-m'] and (
        sys.orig_argv[-len(sys.argv)].endswith('pelk_mm.doctor')
    )


if not _examined():
    try:
        from . import compat, datasets, engine, models
    except (ImportError, AttributeError) as error:
        # On meeting `pelk_mm.PeLK` mmengine imports this and drops exactly
        # these two kinds of errors, to say merely that PeLK is not
        # registered.
        raise RuntimeError(
            'pelk_mm cannot be imported, so nothing of it is registered: '
            f'{type(error).__name__}: {error}. It needs torch, mmengine and '
            'mmcv; "python -m pelk_mm.doctor" says what to do'
        ) from error
    compat.apply()

__all__ = ['__version__', 'datasets', 'engine', 'models']
