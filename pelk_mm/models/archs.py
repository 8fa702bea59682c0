"""The architectures that :class:`~pelk_mm.models.PeLK` knows by name."""

from __future__ import annotations

from typing import Any

#: For an argument: whatever the arch says.
OF_ARCH = 'arch'

_K51 = dict(kernel_sizes=(51, 49, 47, 13), center_radius=2)
_K101 = dict(kernel_sizes=(101, 69, 67, 13), center_radius=3)
_K151 = dict(kernel_sizes=(151, 89, 87, 13), center_radius=3)

_TINY = dict(depths=(3, 3, 9, 3), channels=(124, 249, 499, 998))
_SMALL = dict(depths=(3, 3, 27, 3), channels=(124, 249, 499, 998))
_BASE = dict(depths=(3, 3, 27, 3), channels=(166, 332, 665, 1331))

#: Depths, and channels of the first stage, which double from stage to stage:
#: ConvNeXt (https://arxiv.org/abs/2201.03545) and, for the smallest and the
#: largest, V2 (https://arxiv.org/abs/2301.00808).
_CONVNEXT = {
    'atto': ((2, 2, 6, 2), 40),
    'femto': ((2, 2, 6, 2), 48),
    'pico': ((2, 2, 6, 2), 64),
    'nano': ((2, 2, 8, 2), 80),
    'tiny': ((3, 3, 9, 3), 96),
    'small': ((3, 3, 27, 3), 96),
    'base': ((3, 3, 27, 3), 128),
    'large': ((3, 3, 27, 3), 192),
    'xlarge': ((3, 3, 27, 3), 256),
    'huge': ((3, 3, 27, 3), 352),
}
#: ConvNeXt's block: every channel is convolved, by one kernel, and nothing is
#: added to it. PeLK's is the other.
CONVNEXT_BLOCK = dict(conv_ratio=1.0, small_kernel=None, pos_embed=False)
PELK_BLOCK = dict(conv_ratio=0.375, small_kernel=5, pos_embed=True)


def _convnexts(suffix: str, **kernels: Any) -> dict[str, dict[str, Any]]:
    return {
        f'convnext-{name}{suffix}': dict(
            depths=depths,
            channels=tuple(width * 2**stage for stage in range(4)),
            **kernels,
        )
        for name, (depths, width) in _CONVNEXT.items()
    }


#: The 7x7 of a ConvNeXt lies in the unshared centre, of radius 3.
ARCHS: dict[str, dict[str, Any]] = {
    'tiny': _TINY | _K51,
    'small': _SMALL | _K51,
    'base': _BASE | _K51,
    'tiny-101': _TINY | _K101,
    'base-101': _BASE | _K101,
    'tiny-151': _TINY | _K151,
    **_convnexts('', **dict(_K51, center_radius=3)),
    **_convnexts('-101', **_K101),
}


def block_settings(arch: object, **given: Any) -> dict[str, Any]:
    """Arguments of the blocks; what was not ``given`` is as the arch says."""
    named = isinstance(arch, str) and arch.startswith('convnext-')
    block = CONVNEXT_BLOCK if named else PELK_BLOCK
    # Of strings alone: an array answers `==` with another.
    texts = {name for name, value in given.items() if isinstance(value, str)}
    unsaid = {name for name in texts if given[name] == OF_ARCH}
    return given | {name: block[name] for name in unsaid}
