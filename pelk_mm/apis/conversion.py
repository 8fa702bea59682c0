"""Whole checkpoints made into others: grown, of a ConvNeXt, published."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ..engine.sparsity.masks import mask_from_zeros
from ..engine.sparsity.state import STATE_KEY, pack_state, unpack_masks
from ..models import PeLK
from ..models.utils import (
    ConvNeXt,
    backbone_prefixes,
    find_convnexts,
    move_kernels,
    move_masks,
    read_checkpoint,
    read_grids,
    weights_of,
)
from ..models.utils.safe_saving import kept_meta, to_plain
from ..ops import SharingGrid
from ..utils.config import build_model
from ..utils.files import atomic_path
from ..utils.text import first_few
from ..version import __version__

#: Put before names by averaged and by parallel models.
_WRAPPER = 'module.'


@dataclass(frozen=True)
class GrownStage:
    """What growing did to a stage; ``error`` is relative, by norms."""

    old: SharingGrid
    new: SharingGrid
    error: float


def grow_checkpoint(
    checkpoint: Mapping[str, Any],
    arch: str | Mapping[str, Any],
    from_arch: str | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[GrownStage]]:
    """Give the backbone of a checkpoint other kernel sizes.

    Works on checkpoints of all tasks. The optimizer state is left out, and
    of an averaged model the raw weights. Masks are kept, or read from the
    zeros, and written into the checkpoint, so that the zeros with which new
    positions start are not mistaken for weights that sparse training removed.

    ``arch`` is as for PeLK; a dict may leave depths and channels out.
    ``from_arch`` is what the checkpoint has, None if its shapes tell. Raises
    RuntimeError if it holds no PeLK or another arch, and ValueError if an
    arch is wrong, has other depths or channels, or the same kernels.
    """
    weights = weights_of(checkpoint, 'the checkpoint')
    prefixes = backbone_prefixes(weights)
    if len(prefixes) != 1:
        where = f'{prefixes}' if prefixes else 'none at all'
        hint = '; tools/model_converters/from_convnext.py takes a ConvNeXt'
        raise RuntimeError(
            f'expected one PeLK backbone in the checkpoint, found {where}'
            f'{hint if find_convnexts(weights) else ""}'
        )
    prefix = prefixes[0]
    shape = _skeleton(weights, prefix)
    if from_arch is None:
        old = read_grids(weights, prefix)
    else:
        old = _grids(from_arch, shape)
    new = _grids(arch, shape)
    grown, errors = move_kernels(weights, prefix, old, new)
    result = dict(meta=kept_meta(checkpoint), state_dict=grown)
    state = _grown_state(checkpoint, weights, prefix, old, new)
    result[STATE_KEY] = state
    stages = zip(old, new, errors, strict=True)
    return result, [GrownStage(*stage) for stage in stages]


def convert_convnext(
    checkpoint: Mapping[str, Any],
    kernel_sizes: Sequence[int],
    center_radius: int = 3,
) -> tuple[dict[str, Any], ConvNeXt]:
    """Make the ConvNeXt of a checkpoint a PeLK that computes the same.

    A model with a ``backbone`` keeps all else. A ConvNeXt alone, or in a model
    of another library, becomes the backbone of mmpretrain's
    ``ImageClassifier``, and its linear layer a ``LinearClsHead``. The
    optimizer state is left out. The masks of the result say that the new
    cells live.

    Raises:
        RuntimeError: If there is not one ConvNeXt, or no PeLK of these sizes
            computes the same.
        ValueError: If there are no such kernels.
    """
    weights = weights_of(checkpoint, 'the checkpoint')
    found = find_convnexts(weights)
    if len(found) != 1:
        where = [one.prefix for one in found] or 'none at all'
        raise RuntimeError(
            f'expected one ConvNeXt in the checkpoint, found {where}; its '
            f'entries are {first_few(weights)}'
        )
    (convnext,) = found
    convnext.check()
    if len(convnext.depths) != len(kernel_sizes):
        raise RuntimeError(
            f'expected a ConvNeXt of {len(kernel_sizes)} stages, got '
            f'{len(convnext.depths)}'
        )
    prefix = convnext.prefix
    if prefix.endswith('backbone.'):
        result = {k: v for k, v in weights.items() if k not in convnext.names}
    else:
        prefix = 'backbone.'
        head = convnext.head.items()
        result = {f'head.fc.{kind}': weights[name] for name, kind in head}
    grids = [SharingGrid(size, center_radius) for size in kernel_sizes]
    grown = convnext.grown(grids)
    result |= {prefix + name: value for name, value in grown.items()}
    state = _pack_masks(_masks_of_zeros(result, prefix))
    meta = kept_meta(checkpoint)
    return {'meta': meta, 'state_dict': result, STATE_KEY: state}, convnext


def publish_checkpoint(
    config: Config,
    checkpoint: str,
    folder: str | Path,
    *,
    weights: str = 'average',
    trust: bool = False,
) -> Path:
    """Write the part of a checkpoint that other people need.

    The optimizer state, the log and paths of this machine are left out. The
    file is ``CONFIG-HASH.pth``, HASH being the first eight digits of its
    SHA-256. Nothing is written if the weights do not fit the config's model.

    ``weights`` is ``'average'`` for the moving average where there is one,
    ``'raw'`` for what it was taken of, or ``'both'``. ``trust`` reads pickled
    objects too, which runs code that is in them. Raises OSError if there is no
    checkpoint, and RuntimeError if it is unreadable, unfit or has no average.
    """
    loaded = read_checkpoint(checkpoint, trust)
    state = weights_of(loaded, checkpoint)
    raw = _raw_weights(loaded)
    if weights != 'average' and raw is None:
        raise RuntimeError(
            f'{checkpoint} has no moving average, only the weights '
            f'themselves: leave out {weights!r}'
        )
    if weights == 'raw':
        state = raw
    model = build_model(config)
    model.load_state_dict(state, strict=True)
    meta = dict(
        kept_meta(loaded),
        config=Path(config.filename or 'config').stem,
        pelk_mm_version=__version__,
    )
    published = dict(meta=meta, state_dict=_own_storage(state))
    if weights == 'both':
        published['ema_state_dict'] = _own_storage(loaded['ema_state_dict'])
    if STATE_KEY in loaded:
        published[STATE_KEY] = to_plain(loaded[STATE_KEY], STATE_KEY)
    buffer = io.BytesIO()
    torch.save(published, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:8]
    target = Path(folder, f'{meta["config"]}-{digest}.pth')
    with atomic_path(target) as path:
        path.write_bytes(content)
    return target


def _skeleton(weights: Mapping[str, Tensor], prefix: str) -> dict[str, list]:
    """Depths and channels of a backbone."""
    depths, channels = [], []
    while True:
        stage = f'{prefix}stages.{len(depths)}.blocks.'
        inner = [name for name in weights if name.startswith(stage)]
        blocks = {name[len(stage) :].split('.')[0] for name in inner}
        if not blocks:
            return dict(depths=depths, channels=channels)
        depths.append(len(blocks))
        channels.append(len(weights[f'{stage}0.norm.weight']))


def _grids(
    arch: str | Mapping[str, Any], shape: Mapping[str, list]
) -> list[SharingGrid]:
    """Grids of an arch, whose depths and channels must be the ones given."""
    built = len(shape['depths'])
    if isinstance(arch, Mapping):
        # A checkpoint may have fewer stages than the four of an arch.
        filler = {
            key: [*value, *value[-1:] * (PeLK.num_stages - built)]
            for key, value in shape.items()
        }
        arch = {**filler, **arch}
    with torch.device('meta'):
        model = PeLK(arch)
    for key, found in shape.items():
        expected = list(getattr(model, key))
        if expected[:built] != found:
            raise ValueError(
                f'the checkpoint has {key} {found}, arch {arch!r} has '
                f'{expected}: only kernel sizes and the centre radius can be '
                'changed'
            )
    sizes = model.kernel_sizes[:built]
    return [SharingGrid(size, model.center_radius) for size in sizes]


def _grown_state(
    checkpoint: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    prefix: str,
    old: list[SharingGrid],
    new: list[SharingGrid],
) -> dict[str, Any]:
    """The sparsity state of a grown checkpoint."""
    state = checkpoint.get(STATE_KEY)
    if state is not None:
        masks = unpack_masks(state)
    else:
        masks = _masks_of_zeros(weights, prefix)
    # Names in a state have no prefix of a wrapper.
    own = prefix.removeprefix(_WRAPPER)
    masks = {name.removeprefix(_WRAPPER): mask for name, mask in masks.items()}
    return _pack_masks(move_masks(masks, own, old, new))


def _masks_of_zeros(
    weights: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    return {
        name.removeprefix(_WRAPPER): mask_from_zeros(weight)
        for name, weight in weights.items()
        if name.startswith(prefix) and weight.ndim in (2, 4)
    }


def _pack_masks(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sparsity state of a checkpoint that is sparse as these are."""
    total = sum(mask.numel() for mask in masks.values())
    dead = sum(int((~mask).sum()) for mask in masks.values())
    return pack_state(masks, sparsity=dead / max(total, 1), init='zeros')


def _raw_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """What a moving average was taken of; mmengine swaps the two to save."""
    averaged = checkpoint.get('ema_state_dict')
    if averaged is None:
        return None
    return {
        name[len(_WRAPPER) :]: value
        for name, value in averaged.items()
        if name.startswith(_WRAPPER)
    }


def _own_storage(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: a view would drag all of its base into the file."""
    return {k: value.detach().cpu().clone() for k, value in state.items()}
