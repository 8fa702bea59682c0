"""Checks of the arguments of :class:`~pelk_mm.models.PeLK`.

Each function returns the checked value, or raises a TypeError or ValueError
that names the argument, what was expected and what was got.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

from torch import Tensor

from ...ops import SharingGrid
from ...ops.checks import check_bool, check_integer, check_number, did_you_mean
from ...ops.sharing_grid import LARGEST_KERNEL
from ..utils import is_pretrained, parts_of, pretrained_of

NUM_STAGES, STEM_STRIDE = 4, 4
#: Beyond what any machine holds: what is larger is a slip of the keyboard.
_MOST_BLOCKS, _MOST_CHANNELS, _LARGEST_SCALE = 10_000, 1_000_000, 1e6
#: What an arch lists for each stage, and the largest value of an entry.
_LISTS = dict(
    depths=_MOST_BLOCKS, channels=_MOST_CHANNELS, kernel_sizes=LARGEST_KERNEL
)


def check_arch(arch: object, known: Mapping[str, dict]) -> dict[str, Any]:
    """An arch as a dict of tuples and ``center_radius``."""
    if isinstance(arch, str):
        if arch not in known:
            raise ValueError(
                f'unknown arch {arch!r}{did_you_mean(arch, known)}, expected '
                f'one of {list(known)} or a dict with depths, channels, '
                'kernel_sizes and center_radius'
            )
        return known[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch must be a name or a dict, got {type(arch).__name__}'
        )
    fields = [*_LISTS, 'center_radius']
    missing = [key for key in _LISTS if key not in arch]
    unknown = sorted(set(arch).difference(fields), key=str)
    if missing or unknown:
        hint = did_you_mean(unknown[0], fields) if unknown else ''
        raise ValueError(
            'an arch dict needs depths, channels and kernel_sizes and may '
            f'have center_radius; missing {missing}, unknown {unknown}{hint}'
        )
    settings: dict[str, Any] = {
        key: _check_list(f'arch[{key!r}]', arch[key], most)
        for key, most in _LISTS.items()
    }
    radius = arch.get('center_radius', 2)
    settings['center_radius'] = check_integer(
        "arch['center_radius']", radius, 0, LARGEST_KERNEL // 2
    )
    for size in settings['kernel_sizes']:
        try:
            SharingGrid(size, settings['center_radius'])
        except ValueError as error:
            raise ValueError(f"arch['kernel_sizes']: {error}") from error
    return settings


def _check_list(name: str, values: Any, most: int) -> tuple[int, ...]:
    if not _is_list(values):
        raise TypeError(
            f'{name} must be a sequence of {NUM_STAGES} integers, got '
            f'{values!r}'
        )
    if len(values) != NUM_STAGES:
        raise ValueError(
            f'{name} must have one entry for each of the {NUM_STAGES} '
            f'stages, got {len(values)}: {list(values)}'
        )
    return tuple(
        check_integer(f'{name}[{i}]', value, 1, most)
        for i, value in enumerate(values)
    )


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def check_in_channels(value: object) -> int:
    """Channels of the images."""
    return check_integer('in_channels', value, 1, _MOST_CHANNELS)


def check_frozen_stages(value: object) -> int:
    """How many stages are frozen; for none the libraries write -1 too."""
    return max(check_integer('frozen_stages', value, -1, NUM_STAGES), 0)


def check_out_indices(out_indices: Any) -> tuple[int, ...]:
    """The stages asked for, counted from 0."""
    if isinstance(out_indices, Integral):
        out_indices = [out_indices]
    if not _is_list(out_indices) or not out_indices:
        raise TypeError(
            'out_indices must be an integer or a non-empty sequence of '
            f'integers, got {out_indices!r}'
        )
    return tuple(
        check_integer('out_indices', i, -NUM_STAGES, NUM_STAGES - 1)
        % NUM_STAGES
        for i in out_indices
    )


def check_rate_and_scale(drop_path_rate: object, layer_scale: object) -> None:
    """A rate that lets the last block run at times; a start of LayerScale."""
    if check_number('drop_path_rate', drop_path_rate, 0, 1) == 1:
        raise ValueError(
            'drop_path_rate must be below 1, which would never run the last '
            'block, got 1'
        )
    check_number('layer_scale_init_value', layer_scale, 0, _LARGEST_SCALE)


def check_bools(**flags: object) -> None:
    """True or False by the names of arguments."""
    for name, value in flags.items():
        check_bool(name, value)


def check_init_cfg(init_cfg: Any) -> dict | list[dict] | None:
    """One that mmengine can read, which it does long afterwards."""
    for cfg in parts_of(init_cfg):
        if not isinstance(cfg, Mapping):
            raise TypeError(
                'init_cfg must be None, a dict or a list of dicts, got '
                f'{cfg!r} of type {type(cfg).__name__}'
            )
        if not isinstance(cfg.get('type'), (str, type)):
            raise ValueError(
                "init_cfg needs a type, such as 'Pretrained' or "
                f"'TruncNormal', got {dict(cfg)}"
            )
        if not is_pretrained(cfg):
            continue
        for key, kind in (('checkpoint', str), ('prefix', str | None)):
            value = cfg.get(key)
            if not isinstance(value, kind):
                raise TypeError(
                    f'init_cfg.{key} must be a string, got {value!r}'
                )
    pretrained_of(init_cfg)
    return deepcopy(init_cfg)


def check_images(x: Tensor, channels: int, stages: int) -> None:
    """Images ``(N, channels, H, W)`` that are large enough for the stages."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f'PeLK expects images (N, {channels}, H, W), got shape '
            f'{tuple(x.shape)}'
        )
    least = STEM_STRIDE * 2 ** (stages - 1)
    height, width = x.shape[2:]
    if min(height, width) < least:
        raise ValueError(
            f'an image of {height} x {width} pixels is too small: the stem '
            f'has stride {STEM_STRIDE} and the stages in use need at least '
            f'{least} x {least}; resize or pad it'
        )
