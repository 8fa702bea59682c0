"""Larger kernels for the depthwise convolutions of any network."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from torch import nn

from ...ops import SharingGrid
from ...ops.checks import check_integer
from ...utils.text import first_few
from ..layers import EnlargedConv2d, why_not_enlarged
from ..openmmlab import MODELS, print_log


def enlarge_kernels(
    model: nn.Module,
    kernel_size: int | Mapping[str, int],
    center_radius: int = 3,
    only_size: int | Sequence[int] | None = None,
) -> nn.Module:
    """Give depthwise convolutions larger kernels; the outputs stay the same.

    Ordinary depthwise convolutions of stride 1 that pad with zeros to the
    same size become peripheral ones, the old kernel in the unshared centre and
    zeros around it. Names, modes and ``requires_grad`` stay, parameters are
    new: build the optimizer afterwards. State dicts of the network as it was
    load as before.

    Other depthwise convolutions, and those that do not fit, are left; one log
    line says how many and why. One that a pattern chose must fit, unless its
    stride is larger.

    Args:
        model (nn.Module): Changed in place.
        kernel_size (int | Mapping[str, int]): K, odd, of all; or by a regular
            expression that is searched for in a layer's name, the first that
            is found.
        center_radius (int): Unshared positions on each side of the central
            one. The old kernels must fit in: 3 takes up to 7 x 7, and 3 x 3
            dilated by 3. Default: 3.
        only_size (int | Sequence[int], optional): Replace only kernels of
            this size, or these rows and columns. Default: None.

    Returns:
        nn.Module: The model.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, nothing would be replaced,
            or a pattern finds nothing or what cannot be replaced.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8))
        >>> enlarge_kernels(model, 51)[0].grid.kernel_size
        51
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f'model must be an nn.Module, got {kind}')
    grids = _grids(kernel_size, center_radius)
    wanted = None if only_size is None else _rows_and_columns(only_size)
    names = _depthwise(model)
    replaced: dict[nn.Module, EnlargedConv2d] = {}
    left: dict[str, list[str]] = defaultdict(list)
    unused = dict(grids)
    for conv, places in names.items():
        pattern = next((p for p in grids if _is_in(p, places)), None)
        if pattern is None or wanted not in (None, conv.kernel_size):
            continue
        grid = grids[pattern]
        reason = why_not_enlarged(conv, grid)
        if reason is None:
            replaced[conv] = EnlargedConv2d(conv, grid)
            unused.pop(pattern, None)
        elif isinstance(kernel_size, Mapping) and max(conv.stride) == 1:
            raise ValueError(
                f'{places[0]} cannot be enlarged to {grid.kernel_size}, as '
                f'kernel_size[{pattern!r}] says: {reason}'
            )
        else:
            left[reason].append(places[0])
    for pattern in unused:
        raise ValueError(
            f'kernel_size={kernel_size}, only_size={only_size}: nothing to '
            f'enlarge{f" for {pattern!r}" if pattern else ""} in '
            f'{type(model).__name__}, whose depthwise convolutions are: '
            f'{_listing(names) or "none"}{_reasons(left)}'
        )
    # Listed first: what is found is replaced.
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    sizes = Counter(
        f'{_times(layer.old_shape[2:])} to {layer.grid.kernel_size}'
        for layer in replaced.values()
    )
    print_log(
        f'enlarge_kernels: {len(replaced)} of {len(names)} depthwise '
        f'convolutions of {type(model).__name__} replaced ('
        f'{", ".join(f"{n} from {size}" for size, n in sizes.items())})'
        f'{_reasons(left)}',
        logger='current',
    )
    return replaced.get(model, model)


@MODELS.register_module()
def EnlargedKernels(  # noqa: N802, as configs call what they build
    backbone: dict[str, Any],
    kernel_size: int | Mapping[str, int],
    center_radius: int = 3,
    only_size: int | Sequence[int] | None = None,
    **fields: Any,
) -> nn.Module:
    """Build a network of a config with larger kernels.

    What comes back is the inner network itself, so all that its library knows
    of it (names, depths, frozen stages, pretrained weights) stays.

    Args:
        backbone (dict): Config of the inner network.
        kernel_size (int | Mapping[str, int]): See :func:`enlarge_kernels`,
            as all that follow.
        center_radius (int): Default: 3.
        only_size (int | Sequence[int], optional): Default: None.
        **fields: Put into the inner config: models set some of their backbone,
            such as ``pretrained``.

    Example:
        >>> backbone = dict(
        ...     type='pelk_mm.EnlargedKernels',
        ...     backbone=dict(type='mmpretrain.ConvNeXt', arch='tiny'),
        ...     kernel_size={r'stages\\.[01]': 51, r'stages\\.2': 31})
    """
    if not isinstance(backbone, dict):
        raise TypeError(
            'backbone must be the config of a network, such as '
            f"dict(type='mmpretrain.ConvNeXt', ...), got {backbone!r}"
        )
    inner = copy(backbone)
    inner.update(fields)
    model = MODELS.build(inner)
    return enlarge_kernels(model, kernel_size, center_radius, only_size)


def _grids(
    kernel_size: int | Mapping[str, int], center_radius: int
) -> dict[str, SharingGrid]:
    """The grid of each pattern; one size goes with a pattern that is in all.

    Raises TypeError or ValueError if an argument is wrong.
    """
    if not isinstance(kernel_size, Mapping):
        return {'': SharingGrid(kernel_size, center_radius)}
    if not kernel_size:
        raise ValueError('kernel_size must have a size or patterns, got {}')
    for pattern in kernel_size:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(
                'kernel_size must have regular expressions as keys, got '
                f'{pattern!r}: {error}'
            ) from error
    return {
        pattern: SharingGrid(size, center_radius)
        for pattern, size in kernel_size.items()
    }


def _rows_and_columns(only_size: int | Sequence[int]) -> tuple[int, ...]:
    pair = only_size if isinstance(only_size, (list, tuple)) else [only_size]
    if len(pair) not in (1, 2):
        raise ValueError(f'only_size must be one or two sizes, got {pair}')
    sizes = tuple(check_integer('only_size', size, 1) for size in pair)
    return sizes if len(sizes) == 2 else sizes * 2


def _depthwise(model: nn.Module) -> dict[nn.Conv2d, list[str]]:
    """Depthwise convolutions, with all names of each."""
    found: dict[nn.Conv2d, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d) and (
            module.groups == module.in_channels == module.out_channels
        ):
            found[module].append(name)
    return found


def _is_in(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _listing(convs: Mapping[nn.Conv2d, list[str]]) -> str:
    """``'18 of 7 x 7 (a, b, c and 15 more)'``, by size."""
    by_size = defaultdict(list)
    for conv, names in convs.items():
        by_size[_times(conv.kernel_size)].append(names[0])
    return ', '.join(
        f'{len(names)} of {size} ({first_few(names)})'
        for size, names in by_size.items()
    )


def _times(sizes: Sequence[int]) -> str:
    return ' x '.join(map(str, sizes))


def _reasons(left: Mapping[str, list[str]]) -> str:
    """What was left and why, to end a sentence with; or nothing."""
    return ''.join(
        f'; {len(names)} left for {reason}: {first_few(names)}'
        for reason, names in left.items()
    )
