"""Why a run failed, by what its objects know: in one line, with advice."""

from __future__ import annotations

import os.path as osp
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import search
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch import Tensor, nn
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd

from ...datasets.images import IMAGE_SUFFIXES, read_image
from ...models import PeLK
from ...utils.config import type_name, unwrapped
from ...utils.errors import explain
from ...utils.text import first_few
from .annotations import read_coco, reads_coco
from .config_fields import backbone_place, channel_advice, part_of
from .heads import class_counts
from .samples import why_empty


def why(error: BaseException, model: nn.Module, config: Config) -> str | None:
    """What failed and what to do about it, None where nothing is known.

    Looked at are the module that raised and what it was given, the
    transformation and the file that it was at, and the annotations that a
    data set was reading.
    """
    model = unwrapped(model)
    calls = _calls(error, model)
    lines = [
        _wrong_annotations(error),
        _no_samples(error),
        _wrong_sample(error),
        _own_error(error, calls),
        _wrong_input(error, calls, model, config),
        _batch_of_one(error, calls),
        _two_dimensions(error, calls, model, config),
        _wrong_outputs(error, calls, model, config),
        _label_beyond(error, model),
        _wrong_classes(calls, model),
    ]
    return next((line for line in lines if line), None)


def with_cause(line: str, error: BaseException) -> str:
    """The line, and under it what the library said."""
    return f'{line}\n  {type(error).__name__}: {explain(error)}'


@dataclass(frozen=True)
class _Call:
    """A module that was running, and the tensors that it was given."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]

    @property
    def about(self) -> str:
        return f'model.{self.name} ({type(self.module).__name__})'


def _calls(error: BaseException, model: nn.Module) -> list[_Call]:
    """Modules of a model that the error went through, the innermost first."""
    names = {module: name for name, module in model.named_modules()}
    for key, value in vars(model).items():
        if isinstance(value, nn.Module):
            # mmdetection's teacher, which is no part of the model; its config
            # has the names of its parts.
            start = key.removesuffix('model')
            names |= {m: f'{start}{n}' for n, m in value.named_modules() if n}
    calls: dict[nn.Module, _Call] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        values = frame.f_locals
        module = values.get('self')
        if not isinstance(module, nn.Module) or not names.get(module):
            continue
        # A module's call has all inputs in `args`, its methods by name.
        inputs = values.get('args')
        if not isinstance(inputs, tuple):
            code = frame.f_code
            count = code.co_argcount
            inputs = [values.get(v) for v in code.co_varnames[1:count]]
        if module not in calls or frame.f_code.co_name in ('loss', 'forward'):
            calls[module] = _Call(names[module], module, tuple(inputs))
    return list(calls.values())[::-1]


def _frames(error: BaseException) -> Iterator[Mapping[str, Any]]:
    """Variables of the functions that the error went through, last first."""
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        yield frame.f_locals


def _own_error(error: BaseException, calls: Sequence[_Call]) -> str | None:
    """PeLK's own words."""
    own = calls and isinstance(calls[0].module, PeLK)
    return f'{calls[0].about}: {error}' if own else None


def _wrong_input(
    error: BaseException,
    calls: Sequence[_Call],
    model: nn.Module,
    config: Config,
) -> str | None:
    """A layer for other channels, or for maps where vectors come."""
    for call in calls:
        expected = _expected_channels(call.module)
        given = next((i for i in call.inputs if isinstance(i, Tensor)), None)
        if given is None:
            continue
        pools = isinstance(call.module, _AdaptiveAvgPoolNd)
        if expected is None and not pools:
            continue
        linear = isinstance(call.module, (nn.Linear, nn.LayerNorm))
        backbones = [m for m in model.modules() if isinstance(m, PeLK)]
        backbone = backbones[0] if backbones else None
        shape = tuple(given.shape)
        if not linear and given.ndim < 3:
            line = f'{call.about} needs maps and is given vectors, {shape}'
            return line + _needs_maps(backbone, call, config)
        if linear and given.ndim == 4 and given.shape[1] == expected:
            return (
                f'{call.about} needs vectors and is given maps, {shape}: set '
                f'{backbone_place(config)}.gap_before_final_norm=True, or '
                "model.neck=dict(type='GlobalAveragePooling')"
            )
        count = given.shape[-1 if linear else 1]
        if expected is None or count == expected:
            return None
        line = f'{call.about} takes {expected} channels and is given {count}'
        gives = _gives(backbone)
        if count in gives and not call.name.startswith('backbone'):
            line += f' of those that the backbone PeLK gives, {gives} ('
            if isinstance(backbone.arch, str):
                line += f'arch={backbone.arch!r}, '
            line += f'out_indices={backbone.out_indices})'
        advice = channel_advice(call.name, expected, count, gives, config)
        return f'{line}: set {advice}' if advice else line
    return None


def _expected_channels(module: nn.Module) -> int | None:
    """Channels of the input of a layer of torch."""
    for name in ('in_channels', 'in_features', 'num_features', 'num_channels'):
        value = getattr(module, name, None)
        if isinstance(value, int) and hasattr(module, 'weight'):
            return value
    shape = getattr(module, 'normalized_shape', None)
    return shape[-1] if shape else None


def _gives(backbone: PeLK | None) -> list[int]:
    if backbone is None:
        return []
    return [backbone.channels[i] for i in backbone.out_indices]


def _needs_maps(backbone: PeLK | None, call: _Call, config: Config) -> str:
    if backbone is None:
        return ''
    if not backbone.gap_before_final_norm:
        return (
            ': the neck averages the maps of the backbone, set model.neck=None'
        )
    advice = f': set {backbone_place(config)}.gap_before_final_norm=False'
    where, node = part_of(config, call.name)
    # A neck that does nothing else can be left out.
    pools = where == 'model.neck' and type_name(node) == 'GlobalAveragePooling'
    return f'{advice} or {where}=None' if pools else advice


def _batch_of_one(error: BaseException, calls: Sequence[_Call]) -> str | None:
    if 'more than 1 value per channel' not in str(error) or not calls:
        return None
    return (
        f'{calls[0].about} has one value per channel to normalise: set '
        'train_dataloader.batch_size to 2 or more per process, or use a norm '
        'that needs no batch (GN, or SyncBN on several GPUs). If only the '
        'last batch of an epoch is that small: '
        'train_dataloader.drop_last=True'
    )


def _two_dimensions(
    error: BaseException,
    calls: Sequence[_Call],
    model: nn.Module,
    config: Config,
) -> str | None:
    """Vectors where a part asks for height and width."""
    backbones = [m for m in model.modules() if isinstance(m, PeLK)]
    if not calls or not backbones or not backbones[0].gap_before_final_norm:
        return None
    if not search(r'got 2\)|range of \[-2, 1\]', str(error)):
        return None
    line = f'{calls[0].about} needs maps and is given vectors'
    return line + _needs_maps(backbones[0], calls[0], config)


def _wrong_outputs(
    error: BaseException,
    calls: Sequence[_Call],
    model: nn.Module,
    config: Config,
) -> str | None:
    """A part that asks for other outputs than the backbone gives."""
    backbones = [m for m in model.modules() if isinstance(m, PeLK)]
    kinds = (IndexError, AssertionError, ValueError)
    if not backbones or not isinstance(error, kinds):
        return None
    gives, out = _gives(backbones[0]), backbones[0].out_indices
    stages, place = list(backbones[0].channels), backbone_place(config)
    unpacked = search(r'to unpack \(expected (\d+), got (\d+)', str(error))
    if unpacked and calls and int(unpacked[2]) == len(gives):
        every = tuple(range(int(unpacked[1])))
        return (
            f'{calls[0].about} takes {len(every)} outputs and the backbone '
            f'PeLK gives {len(gives)} ({place}.out_indices={out}): set '
            f'{place}.out_indices={every}'
        )
    for call in calls:
        indices = getattr(call.module, 'in_index', None)
        several = isinstance(indices, Sequence)
        asked = indices if several else [] if indices is None else [indices]
        beyond = [i for i in asked if not -len(gives) <= i < len(gives)]
        if beyond:
            line = (
                f'{call.about}: in_index={indices} asks for output '
                f'{beyond[0]}, but the backbone PeLK gives {len(gives)} '
                f'({place}.out_indices={out})'
            )
            every = tuple(range(max(asked) + 1))
            fits = len(every) <= len(stages)
            return f'{line}: set {place}.out_indices={every}' if fits else line
        maps = [i for i in call.inputs if isinstance(i, (tuple, list))]
        given = len(maps[0]) if maps else 0
        where, node = part_of(config, call.name)
        expected = node.get('in_channels')
        takes = len(expected) if isinstance(expected, Sequence) else given
        if takes != given == len(gives):
            line = (
                f'{call.about} takes {takes} maps (in_channels={expected}) '
                f'and the backbone PeLK gives {given} '
                f'({place}.out_indices={out}): set '
                f'{where}.in_channels={type(expected)(gives)}'
            )
            if set(expected) <= set(stages):
                wanted = tuple(stages.index(count) for count in expected)
                line += f' or {place}.out_indices={wanted}'
            return line
    return None


def _label_beyond(error: BaseException, model: nn.Module) -> str | None:
    """A label that no head has, as the loss tells it."""
    found = search(r'Target (-?\d+) is out of bounds', str(error))
    if not found and 'device-side assert' not in str(error):
        return None
    what = (
        f'a label is {found[1]}'
        if found
        else ('the GPU met a number that is out of bounds, as of a label')
    )
    counts = [f'model.{n}: {c}' for n, c in class_counts(model).items()]
    return f'{what}; num_classes of the heads: {", ".join(counts)}'


def _wrong_classes(calls: Sequence[_Call], model: nn.Module) -> str | None:
    """Heads, and what mixes labels, that count different classes."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    mixed = getattr(preprocessor, 'num_classes', None)
    # Only once the backbone has done its part.
    counts = class_counts(model)
    failed = {call.name for call in calls}
    if isinstance(mixed, int):
        for name, count in counts.items():
            if name in failed and count != mixed:
                return (
                    f'model.{name}.num_classes is {count}, but labels are '
                    f'mixed for data_preprocessor.num_classes={mixed}: set '
                    'both to the number of classes'
                )
    wrong = [name for name in counts if name in failed]
    if wrong and len(set(counts.values())) > 1:
        told = ', '.join(f'model.{n}: {c}' for n, c in counts.items())
        return f'num_classes differ between heads ({told})'
    return None


def _wrong_sample(error: BaseException) -> str | None:
    """The transformation that failed, and on which file."""
    for values in _frames(error):
        step, results = values.get('self'), values.get('results')
        if not hasattr(step, 'transform') or not isinstance(results, Mapping):
            continue
        seg = results.get('seg_map_path')
        image = results.get('img_path')
        path = image if results.get('img') is None or not seg else seg
        text = f'{type(step).__name__} failed on {path or "a sample"}'
        reason = _why_unreadable(path)
        if reason:
            return reason
        if 'reduce_zero_label' in str(error):
            wanted = getattr(step, 'reduce_zero_label', True)
            text += (
                ': reduce_zero_label is said in the pipeline and not to the '
                'data set, which counts the classes: set '
                f'train_dataloader.dataset.reduce_zero_label={wanted}'
            )
        return text
    return None


def _why_unreadable(path: Any) -> str | None:
    """What is wrong with an image, None if nothing, or if it is another."""
    if not isinstance(path, str) or '://' in path:
        return None
    if not osp.exists(path):
        return f'there is no {path}'
    if Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        return None
    try:
        read_image(path)
    except ValueError as wrong:
        return str(wrong)
    return None


def _wrong_annotations(error: BaseException) -> str | None:
    """What is wrong with the annotation file that a data set was reading."""
    for values in _frames(error):
        reader = values.get('self')
        path = getattr(reader, 'ann_file', None)
        if not isinstance(path, str) or not reads_coco(reader):
            continue
        found = read_coco(path, reader.metainfo.get('classes'))
        errors = found.errors() if found else []
        return f'{path}: {first_few(errors)}' if errors else None
    return None


def _no_samples(error: BaseException) -> str | None:
    """A data set that has found nothing; mmengine cannot pack that."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is BaseDataset._serialize_data.__code__:
            reader = frame.f_locals['self']
            return None if reader.data_list else why_empty(reader)
    return None
