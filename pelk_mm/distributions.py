"""The two families of OpenMMLab packages, told apart by what is installed.

The packages of OpenMMLab itself, and those of a maintained fork, are published
under different names but installed under the same ones: ``import mmcv`` finds
either. The standard library is all that is needed here, so that a broken
environment can still be asked what is in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import distributions

#: For each what is imported and the distribution that brings it.
FAMILIES: dict[str, dict[str, str]] = {
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
#: Other distributions of the first family that bring the same.
_OTHER_NAMES = {
    'mmengine': ['mmengine-lite'],
    'mmcv': ['mmcv-full', 'mmcv-lite'],
}


def installed(path: Iterable[str] | None = None) -> dict[str, str]:
    """Versions of all installed distributions by their normalised names.

    Of one that is in the folders of ``path`` (default: ``sys.path``) twice it
    is the version that comes first, as for an import.
    """
    found: dict[str, str] = {}
    folders = sys.path if path is None else list(path)
    for distribution in distributions(path=folders):
        # What an interrupted pip leaves behind has no readable metadata.
        with suppress(Exception):
            name = re.sub('[-_.]+', '-', distribution.metadata['Name'])
            if name and distribution.version:
                found.setdefault(name.lower(), distribution.version)
    return found


def providers(packages: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """By each name that is imported, the distributions of each family.

    More than one distribution of a name means that their files overwrite each
    other. `packages` come from :func:`installed`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for family, distribution in FAMILIES.items():
        for module, name in distribution.items():
            names = [name]
            if family == 'openmmlab':
                names += _OTHER_NAMES.get(module, [])
            there = [each for each in names if each in packages]
            brought = found.setdefault(module, {})
            if there:
                brought[family] = there
    return found


def installed_families(packages: dict[str, str]) -> list[str]:
    """Those of which anything is installed, in the order of ``FAMILIES``."""
    found = providers(packages).values()
    return [name for name in FAMILIES if any(name in each for each in found)]
