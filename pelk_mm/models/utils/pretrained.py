"""What a checkpoint means to a backbone: whether it fits, and loading it.

Nothing is loaded silently if it is of another model, of another arch, or
merged where the backbone is not.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...utils.text import first_few
from ..openmmlab import print_log
from .convnext import PELK_KERNEL, as_pelk, find_convnexts
from .safe_loading import Checkpoints, read_checkpoint, weights_of

if TYPE_CHECKING:
    from ..backbones import PeLK

_STEM = 'downsample_layers.0.0.weight'
_BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.')
#: The parts of a stage's convolutions, apart from a mere counter.
_PART = re.compile(
    r'stages\.(\d+)\.(?:blocks\.\d+\.conv\.)?'
    r'(pos_embed|large|small|(?:large|small)_norm)'
    r'(?!\.num_batches_tracked)(\.\w+)?$'
)
#: What merging takes away.
_TRAINING_ONLY = {'pos_embed', 'large_norm', 'small_norm'}
_KERNEL = re.compile(r'\.conv\.large\.weight$|\.pos_embed$')
#: What differs between tasks: each asks for the output of its own stages.
_OUTPUT_NORM = re.compile(r'norm\d+\.')


def prepare_weights(
    model: PeLK, state_dict: dict[str, Tensor], prefix: str
) -> None:
    """Make a state dict one of this backbone, in place, or raise.

    A ConvNeXt under ``prefix`` is read as a PeLK, which is logged. Raises
    the RuntimeErrors of :func:`as_pelk` and :func:`check_state_dict`.
    """
    prepared, read = as_pelk(model, state_dict, prefix)
    if read is not None:
        print_log(f'{type(model).__name__}: {read}', logger='current')
        state_dict.clear()
        state_dict.update(prepared)
    check_state_dict(model, state_dict, prefix)


def check_state_dict(
    model: PeLK, state_dict: Mapping[str, Tensor], prefix: str
) -> None:
    """Raise a RuntimeError unless the state dict is one of this backbone.

    Missing entries are left to the caller's ``strict``, and a stem for images
    of other channels to torch, which refuses it, or mmengine, which loads the
    rest. What is refused here would otherwise load little or nothing, or
    weights that mean another thing. Entries of other modules, without
    ``prefix``, may be in it.
    """
    own = {key: value.shape for key, value in model.state_dict().items()}
    given = {
        key: value.shape
        for key, value in _without_prefix(state_dict, prefix).items()
        if isinstance(value, Tensor)
    }
    found = own.keys() & given.keys()
    if not found:
        raise RuntimeError(
            f'0 of the {len(own)} entries of the PeLK backbone are in the '
            f'state dict under the prefix {prefix!r}; it has '
            f'{_entries(state_dict)}. Is this a checkpoint of another model?'
        )
    stages = len(model.stages)
    depths, expected = _depths(given, stages), list(model.depths[:stages])
    if depths != expected:
        raise RuntimeError(
            f'the checkpoint has {depths} blocks in its stages, this model '
            f'{expected}: it is of another arch than {model.arch!r}'
        )
    _check_parts(model, _parts(own, stages), _parts(given, stages))
    wrong = sorted(key for key in found if own[key] != given[key])
    if wrong == [_STEM] and other_stem(model, given):
        return
    if wrong:
        lines = '; '.join(
            f'{key} is {tuple(given[key])} in the checkpoint, '
            f'{tuple(own[key])} in the model'
            for key in wrong[:3]
        )
        advice = 'It is of another arch'
        if all(_KERNEL.search(key) for key in wrong):
            advice = (
                'Only the kernels differ: '
                'tools/model_converters/grow_kernel.py converts them'
            )
        raise RuntimeError(
            f'{len(wrong)} of the {len(own)} entries of the PeLK backbone '
            f'({model.arch!r}) have another shape in the checkpoint: {lines}. '
            f'{advice}.'
        )


def other_stem(
    model: PeLK, weights: Mapping[str, Tensor | torch.Size], prefix: str = ''
) -> str | None:
    """What to say where a stem is for images of other channels, if it is.

    ``weights`` are tensors, or their shapes.
    """
    own = model.state_dict()[_STEM].shape
    given = weights.get(prefix + _STEM)
    shape = getattr(given, 'shape', given)
    if shape is None or shape == own or len(shape) != len(own):
        return None
    if (*shape[:1], *shape[2:]) != (*own[:1], *own[2:]):
        return None
    return (
        f'{prefix}{_STEM} is {tuple(shape)} in the checkpoint, for images of '
        f'{shape[1]} channels, and {tuple(own)} in the model'
    )


def _check_parts(model: PeLK, own: set[str], given: set[str]) -> None:
    """Raise unless the convolutions have the same parts."""
    if own == given:
        return
    own_trains, given_trains = (
        any(part.split('.')[0] in _TRAINING_ONLY for part in parts)
        for parts in (own, given)
    )
    advice = (
        'build the PeLK with the small_kernel, pos_embed and norm_cfg that '
        'it was trained with'
    )
    if own_trains and not given_trains:
        advice = (
            'it holds merged weights (saved after switch_to_deploy), this '
            'PeLK is not merged: build it with deploy=True, as in the '
            'config beside a checkpoint of '
            'tools/model_converters/reparameterize.py'
        )
    elif model.deploy and given_trains:
        advice = (
            'it holds weights that are not merged, this PeLK is: build '
            'it with deploy=False, load, then call switch_to_deploy(), as '
            'tools/model_converters/reparameterize.py does'
        )
    raise RuntimeError(
        'the convolutions in the checkpoint have other parts than in this '
        f'model (missing: {", ".join(sorted(own - given)) or "none"}; '
        f'unexpected: {", ".join(sorted(given - own)) or "none"}); {advice}'
    )


def _parts(keys: Iterable[str], stages: int) -> set[str]:
    matches = filter(None, map(_PART.match, keys))
    return {m[2] + (m[3] or '') for m in matches if int(m[1]) < stages}


def _depths(keys: Iterable[str], stages: int) -> list[int]:
    """How many blocks each stage has."""
    matches = filter(None, map(_BLOCK.match, keys))
    blocks = Counter(stage for stage, _ in {m.groups() for m in matches})
    return [blocks[str(stage)] for stage in range(stages)]


def _entries(state_dict: Mapping[str, Tensor]) -> str:
    return first_few(state_dict) or 'no entries at all'


def _without_prefix(
    state_dict: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    inner = [key for key in state_dict if key.startswith(prefix)]
    return {key[len(prefix) :]: state_dict[key] for key in inner}


def load_pretrained(
    model: PeLK,
    checkpoint: str | Path,
    prefix: str = '',
    new_stem: bool = False,
) -> None:
    """Load a backbone's weights from a checkpoint of any task.

    Takes mmengine checkpoints and bare state dicts, of the backbone or of a
    whole model, with or without ``module.`` in front. An exponential moving
    average needs nothing special: mmengine saves it as the ``state_dict``.
    If ``prefix`` is not there but at exactly one other place, that is taken.
    A ConvNeXt of another library is read as a PeLK, see :mod:`.convnext`.
    Warns if more is missing than output norms, which differ between tasks.

    Args:
        model (PeLK): Loaded in place.
        checkpoint (str | Path): A file of torch or safetensors, or a URL.
        prefix (str): Of the backbone's names in it, such as ``'backbone.'``.
            Default: ``''``.
        new_stem (bool): Leave out a stem for images of other channels, with
            a warning. Default: False, which makes it an error.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If the file is not a checkpoint, or holds no weights for
            this backbone.
    """
    name = str(checkpoint)
    contents = read_checkpoint(name)
    weights, prefix, read = _select(model, contents, name, prefix)
    if read is not None:
        print_log(f'{checkpoint}: {read}', logger='current')
    stem = other_stem(model, weights)
    if stem is not None:
        if not new_stem:
            raise RuntimeError(f'{checkpoint}: {stem}')
        del weights[_STEM]
        print_log(
            f'{stem}: it starts at random, the rest is loaded',
            logger='current',
            level=logging.WARNING,
        )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    total = len(model.state_dict())
    untrained = [key for key in missing if not _OUTPUT_NORM.match(key)]
    print_log(
        f'{type(model).__name__}: loaded {total - len(missing)} of {total} '
        f'entries from {checkpoint} (prefix {prefix!r}); missing: '
        f'{", ".join(missing) or "none"}; unexpected: '
        f'{", ".join(unexpected) or "none"}',
        logger='current',
        level=logging.WARNING if untrained else logging.INFO,
    )


def check_pretrained(model: PeLK, checkpoints: Checkpoints) -> None:
    """Raise what loading a backbone's ``init_cfg`` would raise.

    Nothing is loaded into it, so that it may be on the device ``'meta'``; and
    nothing is done without a local ``Pretrained`` checkpoint.
    """
    cfg = pretrained_of(model.init_cfg)
    if cfg is not None and '://' not in cfg['checkpoint']:
        name = cfg['checkpoint']
        _select(model, checkpoints.read(name), name, cfg.get('prefix') or '')


def parts_of(init_cfg: Any) -> list:
    """An ``init_cfg``, which may be None, one part or several, as a list."""
    if init_cfg is None:
        return []
    several = isinstance(init_cfg, (list, tuple))
    return list(init_cfg) if several else [init_cfg]


def pretrained_of(init_cfg: dict | list[dict] | None) -> dict | None:
    """The part of an ``init_cfg`` that loads a checkpoint, None if none."""
    found = [cfg for cfg in parts_of(init_cfg) if is_pretrained(cfg)]
    if len(found) > 1:
        raise ValueError(
            'init_cfg may load one checkpoint, got several of '
            f"type 'Pretrained': {found}"
        )
    return found[0] if found else None


def initialise(model: PeLK) -> None:
    """Do what a backbone's ``init_cfg`` says, a checkpoint last."""
    cfg = pretrained_of(model.init_cfg)
    others = [part for part in parts_of(model.init_cfg) if part is not cfg]
    if others:
        from mmengine.model import initialize

        initialize(model, others)
    if cfg is not None:
        prefix = cfg.get('prefix') or ''
        load_pretrained(model, cfg['checkpoint'], prefix, new_stem=True)


def warn_unread(cfg: Mapping) -> None:
    """Say that a part of an ``init_cfg`` has not been done."""
    print_log(
        f'PeLK: its weights are random; {cfg["checkpoint"]} of init_cfg is '
        'loaded by init_weights(), which a Runner calls and nobody did here',
        logger='current',
        level=logging.WARNING,
    )


def is_pretrained(cfg: object) -> bool:
    """Whether a single ``init_cfg`` loads a checkpoint, in any spelling."""
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    name = getattr(kind, '__name__', kind)
    return name in ('Pretrained', 'PretrainedInit', 'mmengine.Pretrained')


def _select(
    model: PeLK, checkpoint: Mapping, name: str, prefix: str
) -> tuple[dict[str, Tensor], str, str | None]:
    """The backbone's entries of a checkpoint, checked, and their prefix.

    And what they were read as, if they were a ConvNeXt's.
    """
    state_dict: Mapping[str, Tensor] = weights_of(checkpoint, name)
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    prefix = _find_prefix(state_dict, prefix, name)
    try:
        state_dict, read = as_pelk(model, state_dict, prefix)
        check_state_dict(model, state_dict, prefix)
    except RuntimeError as error:
        raise RuntimeError(f'{name}: {error}') from error
    return _without_prefix(state_dict, prefix), prefix, read


def backbone_prefixes(names: Iterable[str]) -> list[str]:
    """What each PeLK's names start with: ``'backbone.'``, ``''`` if bare."""
    end = len(PELK_KERNEL)
    return [key[:-end] for key in names if key.endswith(PELK_KERNEL)]


def _find_prefix(
    state_dict: Mapping[str, Tensor], prefix: str, name: str
) -> str:
    """The prefix asked for, or the only one under which a backbone is."""
    prefixes = backbone_prefixes(state_dict)
    prefixes += [found.prefix for found in find_convnexts(state_dict)]
    for candidate in (prefix, f'module.{prefix}'):
        if candidate in prefixes:
            return candidate
    if len(prefixes) == 1:
        return prefixes[0]
    raise RuntimeError(
        f'{name} has no PeLK or ConvNeXt under the prefix {prefix!r}: '
        f'found it under {prefixes or "no prefix at all"}, entries are '
        f'{_entries(state_dict)}'
    )
