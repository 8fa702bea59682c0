"""PeLK for OpenMMLab: importing this registers everything in it.

With torch alone, :mod:`pelk_mm.ops` and :mod:`pelk_mm.models` can be imported
and the rest cannot.
"""

import logging
import os
import sys

from .version import __version__


def _needs_nothing() -> bool:
    """Whether this is the command ``pelk``, or that or the doctor by ``-m``.

    They have to start where the imports below do not work, or end the
    process. While Python looks for a module, ``sys.argv[0]`` is ``'-m'``.
    """
    started = os.path.basename(''.join(sys.argv[:1]))
    if started == '-m':
        started = sys.orig_argv[-len(sys.argv)]
    modules = 'pelk_mm.cli', 'pelk_mm.doctor'
    return started.endswith(modules) or started == 'pelk'


if not _needs_nothing():
    try:
        import pelk_mm_names  # noqa: F401, may have done its work already

        from . import ops  # isort: skip (it needs torch alone)
        from . import registry  # isort: skip (and this mmengine)
        from . import compat

        compat.apply()
        from . import datasets, engine, models
    except (ImportError, AttributeError) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        # On meeting `pelk_mm.PeLK` mmengine imports this and drops exactly
        # these two kinds of errors, to say merely that PeLK is not
        # registered.
        if absent not in ('mmengine', 'mmcv'):
            raise RuntimeError(
                'pelk_mm cannot be imported, so nothing of it is registered: '
                f'{type(error).__name__}: {error}. It needs torch, mmengine '
                'and mmcv; "python -m pelk_mm.doctor" says what to do'
            ) from error
        # Who has no mmengine wants nothing registered.
        if absent == 'mmcv':
            logging.getLogger('pelk_mm').warning(
                'pelk_mm: mmcv is not installed: pelk_mm.ops and '
                'pelk_mm.models work, the rest needs mmcv or mmcv-lite'
            )

__all__ = ['__version__', 'datasets', 'engine', 'models', 'ops', 'registry']
