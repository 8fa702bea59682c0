"""The two rows of OpenMMLab packages, told apart by what is installed.

The packages of OpenMMLab itself, and those of a maintained fork, are published
under different names but installed under the same ones: ``import mmcv`` finds
either. The standard library is all that is needed here, so that a broken
environment can still be asked what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import distributions

#: For every row what is imported and the distribution that brings it.
ROWS: dict[str, dict[str, str]] = {
    'openmmlab': {
        'mmengine': 'mmengine',
        'mmcv': 'mmcv',
        'mmdet': 'mmdet',
        'mmseg': 'mmsegmentation',
        'mmpretrain': 'mmpretrain',
    },
    'onedl': {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmseg': 'onedl-mmsegmentation',
        'mmpretrain': 'onedl-mmpretrain',
    },
}
#: Distributions of the first row that are published in more than one form.
_OTHER_FORMS = {
    'mmengine': ('mmengine-lite',),
    'mmcv': ('mmcv-full', 'mmcv-lite'),
}


def installed(path: Iterable[str] | None = None) -> dict[str, str]:
    """Versions of all installed distributions by their normalised names.

    Args:
        path (Iterable[str], optional): Folders to look in. Default:
            ``sys.path``.

    Returns:
        dict[str, str]: Of a distribution that is there twice the version that
        comes first in ``path``, as for an import.
    """
    found: dict[str, str] = {}
    where = {} if path is None else {'path': list(path)}
    for distribution in distributions(**where):
        try:
            name = distribution.metadata['Name']
            version = distribution.version
        # What an interrupted pip leaves behind has no readable metadata.
        except Exception:
            continue
        if name and version:
            found.setdefault(_normalise(name), version)
    return found


def providers(packages: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Who brings each OpenMMLab package, by row.

    Args:
        packages (dict[str, str]): From :func:`installed`.

    Returns:
        dict[str, dict[str, list[str]]]: For each name that is imported the
        rows that bring it, and the installed distributions of that row. Empty
        where nothing does; more than one distribution in all means that their
        files overwrite each other.
    """
    return {
        module: {
            row: names
            for row in ROWS
            if (
                names := [
                    name for name in _names(row, module) if name in packages
                ]
            )
        }
        for module in ROWS['openmmlab']
    }


def installed_rows(packages: dict[str, str]) -> list[str]:
    """The rows of which anything is installed, in the order of ``ROWS``."""
    found = providers(packages).values()
    return [row for row in ROWS if any(row in rows for rows in found)]


def _names(row: str, module: str) -> tuple[str, ...]:
    other = _OTHER_FORMS.get(module, ()) if row == 'openmmlab' else ()
    return (ROWS[row][module], *other)


def _normalise(name: str) -> str:
    return re.sub('[-_.]+', '-', name).lower()
