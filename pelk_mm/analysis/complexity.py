"""Parameters and multiply-accumulates of a config's model, by part.

Nothing is computed: the model is built and run on torch's meta device, which
knows shapes only, so that Cascade Mask R-CNN at 1280 x 800 takes seconds.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import PeLK, PeripheralConv2d
from ..models.utils import read_checkpoint, weights_of
from ..utils.config import build_model

#: Where a parameter or an operation of PeLK belongs, by the start of its name.
_PARTS = (
    (r'downsample_layers\.0\.', 'stem'),
    (r'downsample_layers\.', 'downsampling'),
    (r'stages\.\d+\.(pos_embed$|blocks\.\d+\.conv\.)', 'large kernels'),
    (r'stages\.', 'FFN'),
    (r'norm\d', 'output norms'),
)
#: Parts of a model of any library that are counted; others are refused.
_COUNTED = re.compile(
    r'backbone|neck|((decode|auxiliary|rpn|roi|bbox)_)?head'
    r'|roi_head\.(bbox|mask)_(head|roi_extractor)'
)
#: A model has one of these.
_HEADS = ('head', 'decode_head', 'roi_head', 'bbox_head')
#: Boxes that each stage of a detector's heads sees.
_ROIS = {'bbox': 1000, 'mask': 100}
_AUXILIARY = 'auxiliary head'
#: Share of zeros in a PeLK, unless said otherwise.
SPARSITY = 0.4


@dataclass
class Part:
    """Counts of one part of a model.

    ``macs_paper`` are multiply-accumulates as the paper counts them: kernels
    executed dense, zero weights not at all, no auxiliary head; ``macs_dense``
    has every weight, ``macs_executed`` is what the operator executes.
    """

    name: str
    params: int = 0
    nonzero: float = 0.0
    macs_paper: float = 0.0
    macs_dense: int = 0
    macs_executed: int = 0


@dataclass
class Complexity:
    """Counts of a model for one image of ``shape``, whole and by part.

    ``measured``: whether ``sparsity``, the share of zeros in 2-D and 4-D
    weights of backbone and classifier head, is a checkpoint's.
    """

    shape: tuple[int, int]
    sparsity: float
    measured: bool
    parts: list[Part]

    def total(self, field: str) -> float:
        """Sum of a field of :class:`Part` over the parts."""
        return sum(getattr(part, field) for part in self.parts)

    def as_dict(self) -> dict:
        """For JSON."""
        names = [field.name for field in fields(Part)[1:]]
        return asdict(self) | {'total': {n: self.total(n) for n in names}}


def count_complexity(
    config: Config,
    shape: Sequence[int],
    sparsity: float | None = None,
    checkpoint: str | None = None,
) -> Complexity:
    """Count the model of a config for one image.

    Multiply-accumulates are those of convolutions and matrix products, of
    PeLK as it is deployed, merged; parameters are those that are trained.
    Each stage of a detector's box head sees 1000 boxes, its mask head 100.
    Only PeLK is split into parts.

    Args:
        shape (Sequence[int]): Height and width in pixels, multiples of 32.
        sparsity (float, optional): Share of zeros to assume in every 2-D and
            4-D weight of the backbone and of a classifier's head, 0 to 1.
            Default: 0.4 for PeLK, 0 for others.
        checkpoint (str, optional): Weights whose zeros are counted instead.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it does not fit the model.
        ValueError: If an argument is none of the above, or the model is of a
            kind that cannot be counted.
    """
    if len(shape) != 2 or any(size < 32 or size % 32 for size in shape):
        text = 'the shape must be a height and a width, multiples of 32'
        raise ValueError(f'{text}, got {tuple(shape)}')
    if sparsity is not None and checkpoint is not None:
        raise ValueError(
            'got both a sparsity and a checkpoint; give one: zeros are '
            'counted in the checkpoint, or assumed without one'
        )
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f'sparsity must be in [0, 1), got {sparsity}')
    measured = checkpoint is not None
    model = build_model(config) if measured else _without_weights(config)
    _check_kind(model)
    is_pelk = isinstance(model.backbone, PeLK)
    if measured:
        _load(model, checkpoint)
    elif sparsity is None:
        sparsity = SPARSITY if is_pelk else 0.0
    model.eval()
    parts, zeros = _count_parameters(model, sparsity)
    if is_pelk:
        model.backbone.switch_to_deploy()
    densities = {
        name: _module_density(f'{name}.', module, sparsity)
        for name, module in model.named_modules()
    }
    model.to('meta')
    with torch.device('meta'), torch.no_grad():
        for name, dense, executed in _operations(model, shape):
            part_name = _part_name(model.backbone, f'{name}.')
            part = parts.setdefault(part_name, Part(part_name))
            part.macs_dense += dense
            part.macs_executed += executed
            if part_name != _AUXILIARY:
                part.macs_paper += dense * densities.get(name, 1.0)
    share = zeros if measured else sparsity
    return Complexity(tuple(shape), share, measured, list(parts.values()))


def _without_weights(config: Config) -> nn.Module:
    try:
        return build_model(config, 'meta')
    except (NotImplementedError, RuntimeError):
        # Constructors that compute with tensors, such as the drop rates of
        # mmpretrain's ConvNeXt, need real ones.
        return build_model(config)


def _check_kind(model: nn.Module) -> None:
    """Refuse what would be counted by half."""
    children = dict(model.named_children())
    if 'roi_head' in children:
        inner = children['roi_head'].named_children()
        children |= {f'roi_head.{name}': child for name, child in inner}
    unknown = [
        name
        for name, child in children.items()
        if not _COUNTED.fullmatch(name) and list(child.parameters())
    ]
    heads = [name for name in _HEADS if name in children]
    if 'backbone' not in children or unknown or len(heads) != 1:
        parts = unknown or heads or ['none']
        raise ValueError(
            f'{type(model).__name__} cannot be counted. Expected a '
            'classifier, a segmentor, a two-stage detector, or a one-stage '
            'detector with one box head; got these other parts: '
            f'{", ".join(parts)}'
        )


def _load(model: nn.Module, checkpoint: str) -> None:
    state = weights_of(read_checkpoint(checkpoint), checkpoint)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 600, placeholder=' …')
        text = f'{checkpoint} does not fit this model: {what}'
        raise RuntimeError(text) from error


def _part_name(backbone: nn.Module, name: str) -> str:
    """The part that a parameter or module of the whole model belongs to."""
    first, _, rest = name.partition('.')
    if first == 'backbone' and isinstance(backbone, PeLK):
        matching = (part for start, part in _PARTS if re.match(start, rest))
        return next(matching, first)
    if first in ('backbone', 'neck'):
        return first
    return _AUXILIARY if first == 'auxiliary_head' else 'head'


# Weights, and which of them are zero ---------------------------------------


def _is_masked(name: str, weight: Tensor) -> bool:
    """Whether sparse training masks a weight."""
    return weight.ndim in (2, 4) and name.startswith(('backbone.', 'head.'))


def _density(name: str, weight: Tensor, sparsity: float | None) -> float:
    """Share of a weight that is not zero: assumed, or counted if None."""
    if sparsity is None:
        return int(weight.count_nonzero()) / max(weight.numel(), 1)
    return 1 - sparsity if _is_masked(name, weight) else 1.0


def _module_density(
    name: str, module: nn.Module, sparsity: float | None
) -> float:
    weight = getattr(module, 'weight', None)
    if not isinstance(weight, Tensor):
        return 1.0
    if sparsity is None and isinstance(module, PeripheralConv2d):
        # Executed dense, the zero of a cell saves all of its positions.
        weight = module.grid.expand(weight.detach() != 0)
    return _density(name, weight, sparsity)


def _count_parameters(
    model: nn.Module, sparsity: float | None
) -> tuple[dict[str, Part], float]:
    """Parameters by part, and the share of zeros where masks would be."""
    parts: dict[str, Part] = {}
    total = kept = 0.0
    for name, parameter in model.named_parameters():
        part_name = _part_name(model.backbone, name)
        part = parts.setdefault(part_name, Part(part_name))
        nonzero = parameter.numel() * _density(name, parameter, sparsity)
        part.params += parameter.numel()
        part.nonzero += nonzero
        if _is_masked(name, parameter):
            total += parameter.numel()
            kept += nonzero
    return parts, 1 - kept / total if total else 0.0


# Operations ----------------------------------------------------------------

#: Name of a module, and its multiply-accumulates: dense and executed.
_Count = tuple[str, int, int]


def _operations(model: nn.Module, shape: Sequence[int]) -> Iterator[_Count]:
    """Run a model's parts, and yield what each module of them costs."""
    features = torch.empty(1, 3, *shape)
    features = yield from _run(model, 'backbone', features)
    if getattr(model, 'with_neck', False):
        features = yield from _run(model, 'neck', features)
    if isinstance(getattr(model, 'decode_head', None), nn.ModuleList):
        raise ValueError(
            'segmentors that refine their own output '
            f'({type(model).__name__}) cannot be counted'
        )
    kinds = ('decode_head', 'auxiliary_head', 'rpn_head', 'bbox_head')
    for kind in (*kinds, 'head'):
        for name in _heads(model, kind):
            yield from _run(model, name, features)
    roi_head = getattr(model, 'roi_head', None)
    for kind, rois in _ROIS.items():
        for i, name in enumerate(_heads(roi_head, f'{kind}_head')):
            pool = getattr(roi_head, f'{kind}_roi_extractor')
            if isinstance(pool, nn.ModuleList):
                pool = pool[i]
            size = pool.roi_layers[0].output_size
            boxes = torch.empty(rois, pool.out_channels, *size)
            yield from _run(model, f'roi_head.{name}', boxes)


def _heads(parent: nn.Module | None, name: str) -> list[str]:
    """The name of a head, of each where there are several, or none."""
    head = getattr(parent, name, None)
    if isinstance(head, nn.ModuleList):
        return [f'{name}.{i}' for i in range(len(head))]
    return [name] if isinstance(head, nn.Module) else []


def _run(
    model: nn.Module, name: str, inputs: object
) -> Generator[_Count, None, object]:
    """Run a part of a model; return its output, yield counts of modules."""
    part = model.get_submodule(name)
    dense: Counter[nn.Module] = Counter()

    def count_dense(conv, _, output) -> None:
        dense[conv] += output.numel() * conv.grid.kernel_size**2

    for module in part.modules():
        if isinstance(module, PeripheralConv2d):
            module.register_forward_hook(count_dense)
    with FlopCounterMode(display=False, depth=None) as counter:
        output = part(inputs)
    by_module = counter.get_flop_counts()
    # Products outside of any layer, such as those of attention.
    rest = counter.get_total_flops() // 2
    for path, module in part.named_modules():
        key = f'{type(part).__name__}.{path}'.rstrip('.')
        if not list(module.children()) and key in by_module:
            executed = sum(by_module[key].values()) // 2
            rest -= executed
            where = f'{name}.{path}'.rstrip('.')
            yield where, dense.get(module, executed), executed
    if rest:
        yield name, rest, rest
    return output
