"""Moving trained kernels from one sharing grid to another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from ...ops import SharingGrid

_LARGE = r'stages\.(\d+)\.blocks\.(\d+)\.conv\.large\.weight'
_POS_EMBED = r'stages\.(\d+)\.pos_embed'


def regrid(weight: Tensor, old: SharingGrid, new: SharingGrid) -> Tensor:
    """Write ``(..., k', k')`` in the cells of another grid.

    The kernel is expanded, padded with zeros (or cut) to the new size around
    its centre, and averaged over every new cell. Of all kernels that the new
    grid can write this is the nearest one in the least-squares sense, and the
    same one wherever the old cells are unions of new ones.
    """
    kernel = resize_centred(old.expand(weight.double()), new.kernel_size)
    return new.project(kernel).to(weight.dtype)


def resize_centred(kernel: Tensor, size: int, value: float = 0.0) -> Tensor:
    """Pad or cut ``(..., K, K)`` around its centre; all sizes are odd."""
    # A negative margin cuts.
    return F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4, value=value)


def read_grids(
    state_dict: Mapping[str, Tensor], prefix: str
) -> list[SharingGrid]:
    """Tell the grids of a backbone's stages by the shapes of its entries.

    The positional embedding shows K and the kernel k'; together they leave
    one centre radius that fits all stages, else it is a RuntimeError.
    """

    def sizes_of(pattern: str) -> dict[int, int]:
        entries = _entries(state_dict, prefix, pattern)
        return {stage: value.shape[-1] for stage, _, value in entries}

    cells, sizes = sizes_of(_LARGE), sizes_of(_POS_EMBED)
    if not cells or cells.keys() != sizes.keys():
        raise RuntimeError(
            'the kernel sizes cannot be told from the checkpoint, as it has '
            'no positional embeddings (merged weights, or pos_embed=False); '
            'say which arch it is of'
        )
    stages = sorted(sizes)
    found = []
    for radius in range(min(sizes.values()) // 2 + 1):
        grids = [SharingGrid(sizes[i], radius) for i in stages]
        fits = [grid.num_cells for grid in grids] == [cells[i] for i in stages]
        if fits and grids not in found:
            found.append(grids)
    if len(found) != 1:
        shapes = [f'{cells[i]} cells for {sizes[i]} positions' for i in stages]
        raise RuntimeError(
            f'{len(found)} centre radii fit the kernels of the checkpoint '
            f'({", ".join(shapes)}); say which arch it is of'
        )
    return found[0]


def move_kernels(
    state_dict: Mapping[str, Tensor],
    prefix: str,
    old: Sequence[SharingGrid],
    new: Sequence[SharingGrid],
) -> tuple[dict[str, Tensor], list[float]]:
    """Write all large kernels of a backbone in the cells of other grids.

    Positional embeddings are padded with zeros (or cut); all else stays.
    Grids are one for each stage. Also returns the relative error per stage:
    the norm of the change over that of the kernels, written out as K x K.

    Raises:
        ValueError: If the grids do not go with the state dict, or nothing
            would change.
    """
    kernels = list(_entries(state_dict, prefix, _LARGE))
    stages = {stage for stage, _, _ in kernels}
    if not len(stages) == len(old) == len(new):
        raise ValueError(
            f'the backbone has {len(stages)} stages, got '
            f'{len(old)} old and {len(new)} new grids'
        )
    for stage, name, weight in kernels:
        found, grid = weight.shape[-1], old[stage]
        if found != grid.num_cells:
            raise ValueError(
                f'{name} has {found} x {found} cells, which is not a kernel '
                f'of {grid.kernel_size} x {grid.kernel_size} in '
                f'{grid.num_cells} x {grid.num_cells} cells'
            )
    if list(old) == list(new):
        sizes = [grid.kernel_size for grid in new]
        raise ValueError(f'the old and the new grids are the same: {sizes}')
    moved = dict(state_dict)
    change, whole = [0.0] * len(old), [1e-300] * len(old)
    for stage, name, weight in kernels:
        before, after = old[stage], new[stage]
        moved[name] = regrid(weight, before, after)
        canvas = max(before.kernel_size, after.kernel_size)
        kernel = resize_centred(before.expand(weight.double()), canvas)
        result = resize_centred(after.expand(moved[name].double()), canvas)
        change[stage] += float((result - kernel).square().sum())
        whole[stage] += float(kernel.square().sum())
    for stage, name, embedding in _entries(state_dict, prefix, _POS_EMBED):
        moved[name] = resize_centred(embedding, new[stage].kernel_size)
    shares = zip(change, whole, strict=True)
    return moved, [(part / total) ** 0.5 for part, total in shares]


def move_masks(
    masks: Mapping[str, Tensor],
    prefix: str,
    old: Sequence[SharingGrid],
    new: Sequence[SharingGrid],
) -> dict[str, Tensor]:
    """Write the bool masks of large kernels in the cells of other grids.

    A new cell lives if any of its positions did, or is new: what lies outside
    of the old kernel is zero only because it was not there.
    """
    moved = dict(masks)
    for stage, name, mask in _entries(masks, prefix, _LARGE):
        positions = old[stage].expand(mask.float())
        alive = resize_centred(positions, new[stage].kernel_size, value=1.0)
        moved[name] = new[stage].reduce(alive) > 0
    return moved


def _entries(
    state_dict: Mapping[str, Tensor], prefix: str, pattern: str
) -> Iterator[tuple[int, str, Tensor]]:
    """Stage, full name and value of the entries that match."""
    for name, value in state_dict.items():
        match = re.fullmatch(re.escape(prefix) + pattern, name)
        if match:
            yield int(match[1]), name, value
