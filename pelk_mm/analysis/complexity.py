"""Parameters and multiply-accumulates of a config's model, by part.

Nothing is computed: the model is built and run on torch's meta device, which
knows shapes only, so that Cascade Mask R-CNN at 1280 x 800 takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

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
_COUNTED = (
    'backbone',
    'neck',
    'head',
    'decode_head',
    'auxiliary_head',
    'rpn_head',
    'roi_head',
    'bbox_head',
)
_COUNTED_ROI = (
    'bbox_head',
    'bbox_roi_extractor',
    'mask_head',
    'mask_roi_extractor',
)
_AUXILIARY = 'auxiliary head'
#: Share of zeros in a PeLK, unless said otherwise.
SPARSITY = 0.4


@dataclass
class Part:
    """Counts of one part of a model.

    Attributes:
        name (str): Such as ``'stem'``.
        params (int): All parameters.
        nonzero (float): Parameters that are not zero.
        macs_paper (float): Multiply-accumulates as the paper counts them:
            kernels executed dense, sparse weights not at all, no auxiliary
            head.
        macs_dense (int): Kernels executed dense, every weight.
        macs_executed (int): What the peripheral operator executes.
    """

    name: str
    params: int = 0
    nonzero: float = 0.0
    macs_paper: float = 0.0
    macs_dense: int = 0
    macs_executed: int = 0


@dataclass
class Complexity:
    """Counts of a model for one image, whole and by part.

    Attributes:
        shape (tuple[int, int]): Height and width of the image, in pixels.
        sparsity (float): Share of zeros in the 2-D and 4-D weights of the
            backbone, and of the head of a classifier.
        measured (bool): Whether the zeros are those of a checkpoint, not
            assumed.
        parts (list[Part]): The counts.
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
        fields = [name for name in Part.__dataclass_fields__ if name != 'name']
        return dict(
            asdict(self), total={name: self.total(name) for name in fields}
        )


def count_complexity(
    config: Config,
    shape: Sequence[int],
    sparsity: float | None = None,
    checkpoint: str | None = None,
    box_rois: int = 1000,
    mask_rois: int = 100,
) -> Complexity:
    """Count the model of a config for one image.

    Multiply-accumulates are those of convolutions and matrix products, of
    PeLK as it is deployed, merged; parameters are those that are trained.

    Args:
        config (Config): Of mmpretrain, mmsegmentation or mmdetection, with
            any backbone; only PeLK's is split into parts.
        shape (Sequence[int]): Height and width of the image, in pixels.
        sparsity (float, optional): Share of zeros to assume in every 2-D and
            4-D weight of the backbone and of a classifier's head, 0 to 1.
            Default: 0.4 for PeLK, 0 for others.
        checkpoint (str, optional): Weights of the model, whose zeros are
            counted instead. Default: None.
        box_rois (int): Boxes that each stage of a detector's box head sees.
            Default: 1000.
        mask_rois (int): The same of the mask heads. Default: 100.

    Returns:
        Complexity: The counts.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it does not fit the model.
        ValueError: If the shape does not suit the model's strides, the
            sparsity is out of range or given beside a checkpoint, or the
            model is of a kind that cannot be counted.
    """
    if len(shape) != 2 or any(size < 32 or size % 32 for size in shape):
        raise ValueError(
            'the shape must be a height and a width, multiples '
            f'of 32, got {tuple(shape)}'
        )
    if sparsity is not None and checkpoint is not None:
        raise ValueError(
            'a sparsity is assumed where there is no checkpoint '
            'to count zeros in; leave out one of the two'
        )
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f'sparsity must be in [0, 1), got {sparsity}')
    model = _build(config, with_weights=checkpoint is not None)
    _check_kind(model)
    if checkpoint is None:
        if sparsity is None:
            sparsity = SPARSITY if isinstance(model.backbone, PeLK) else 0.0
        zeros = _Assumed(1 - sparsity, model)
    else:
        _load(model, checkpoint)
        zeros = _Measured()
    model.eval()
    parts, zero_share = _count_parameters(model, zeros)
    if isinstance(model.backbone, PeLK):
        # Not switch_to_deploy, which looks at weights that may not be there.
        for stage in model.backbone.stages:
            stage.merge()
    shares = {
        name: zeros.of_module(name, module)
        for name, module in model.named_modules()
    }
    model.to('meta')
    with torch.device('meta'), torch.no_grad():
        image = torch.empty(1, 3, *shape)
        for part, count in _operations(model, image, box_rois, mask_rois):
            total = parts.setdefault(part, Part(part))
            total.macs_dense += count.dense
            total.macs_executed += count.executed
            if part != _AUXILIARY:
                total.macs_paper += count.dense * shares.get(count.name, 1.0)
    return Complexity(
        tuple(shape),
        zero_share if checkpoint else sparsity,
        checkpoint is not None,
        list(parts.values()),
    )


def _build(config: Config, with_weights: bool) -> nn.Module:
    if not with_weights:
        try:
            return build_model(config, 'meta')
        except (NotImplementedError, RuntimeError):
            # Constructors that compute with tensors, such as the drop rates
            # of mmpretrain's ConvNeXt, need real ones.
            pass
    return build_model(config)


# Which weights are zero ----------------------------------------------------


class _Assumed:
    """Every weight that sparse training masks has the same density."""

    def __init__(self, density: float, model: nn.Module) -> None:
        self.density = density
        self.prefixes = (
            ('backbone.', 'head.') if _is_classifier(model) else ('backbone.',)
        )

    def of_parameter(self, name: str, parameter: Tensor) -> float:
        masked = parameter.ndim in (2, 4) and name.startswith(self.prefixes)
        return self.density if masked else 1.0

    def of_module(self, name: str, module: nn.Module) -> float:
        weight = getattr(module, 'weight', None)
        return (
            self.of_parameter(f'{name}.', weight)
            if isinstance(weight, Tensor)
            else 1.0
        )


class _Measured:
    """Weights are as dense as they are."""

    def of_parameter(self, name: str, parameter: Tensor) -> float:
        return int(parameter.count_nonzero()) / max(parameter.numel(), 1)

    def of_module(self, name: str, module: nn.Module) -> float:
        weight = getattr(module, 'weight', None)
        if not isinstance(weight, Tensor):
            return 1.0
        if isinstance(module, PeripheralConv2d):
            # Executed dense, the zero of a cell saves all of its positions.
            weight = module.grid.expand(weight.detach() != 0)
        return self.of_parameter(name, weight)


def _load(model: nn.Module, checkpoint: str) -> None:
    state = weights_of(read_checkpoint(checkpoint), checkpoint)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        more = f' (and {len(lines) - 3} lines more)' if len(lines) > 3 else ''
        raise RuntimeError(
            f'{checkpoint} is not of this model: '
            f'{" ".join(line.strip() for line in lines[:3])[:600]}{more}'
        ) from error


# Parameters ----------------------------------------------------------------


def _is_classifier(model: nn.Module) -> bool:
    return not any(
        hasattr(model, name)
        for name in ('decode_head', 'roi_head', 'bbox_head')
    )


def _check_kind(model: nn.Module) -> None:
    """Refuse what would be counted by half."""
    name = type(model).__name__
    children = dict(model.named_children())
    if isinstance(roi := children.get('roi_head'), nn.Module):
        children.update(
            {
                f'roi_head.{key}': child
                for key, child in roi.named_children()
                if key not in _COUNTED_ROI
            }
        )
    unknown = [
        key
        for key, child in children.items()
        if key not in _COUNTED and next(child.parameters(), None) is not None
    ]
    heads = [
        key
        for key in ('head', 'decode_head', 'roi_head', 'bbox_head')
        if key in children
    ]
    if 'backbone' not in children or unknown or len(heads) != 1:
        parts = unknown or heads or ['none']
        raise ValueError(
            f'{name} cannot be counted: a classifier, a segmentor, a '
            'two-stage detector or a one-stage detector with one box head is '
            f'expected, its parts beyond that are: {", ".join(parts)}'
        )


def _part_name(backbone: nn.Module, name: str) -> str:
    """The part that a parameter or module of the whole model belongs to."""
    first, _, rest = name.partition('.')
    if first == 'backbone' and isinstance(backbone, PeLK):
        return next(
            (part for pattern, part in _PARTS if re.match(pattern, rest)),
            'backbone',
        )
    if first in ('backbone', 'neck'):
        return first
    return _AUXILIARY if first == 'auxiliary_head' else 'head'


def _count_parameters(
    model: nn.Module, zeros: _Assumed | _Measured
) -> tuple[dict[str, Part], float]:
    """Parameters by part, and the share of zeros where masks would be."""
    parts: dict[str, Part] = {}
    maskable = _Assumed(0.0, model)
    total = live = 0.0
    for name, parameter in model.named_parameters():
        part_name = _part_name(model.backbone, name)
        part = parts.setdefault(part_name, Part(part_name))
        nonzero = parameter.numel() * zeros.of_parameter(name, parameter)
        part.params += parameter.numel()
        part.nonzero += nonzero
        if maskable.of_parameter(name, parameter) == 0:
            total += parameter.numel()
            live += nonzero
    return parts, 1 - live / total if total else 0.0


# Operations ----------------------------------------------------------------


@dataclass
class _Count:
    """Multiply-accumulates of one module; its name is the whole model's."""

    name: str
    dense: int
    executed: int


def _operations(
    model: nn.Module, image: Tensor, box_rois: int, mask_rois: int
) -> Iterator[tuple[str, _Count]]:
    """Run a model's parts, and yield what each module of them costs."""
    features, counts = _run(model.backbone, 'backbone', image)
    yield from _by_part(model, counts)
    if getattr(model, 'with_neck', False):
        features, counts = _run(model.neck, 'neck', features)
        yield from _by_part(model, counts)
    for name, *inputs in _head_inputs(model, features, box_rois, mask_rois):
        _, counts = _run(model.get_submodule(name), name, *inputs)
        yield from _by_part(model, counts)


def _by_part(
    model: nn.Module, counts: Sequence[_Count]
) -> Iterator[tuple[str, _Count]]:
    for count in counts:
        yield _part_name(model.backbone, f'{count.name}.'), count


def _run(module: nn.Module, name: str, *inputs) -> tuple[object, list]:
    """Run a module; its output, and counts by the modules inside of it."""
    dense: dict[str, int] = {}
    handles = [
        inner.register_forward_hook(
            lambda conv, _, output, path=path: dense.__setitem__(
                path,
                dense.get(path, 0) + output.numel() * conv.grid.kernel_size**2,
            )
        )
        for path, inner in module.named_modules()
        if isinstance(inner, PeripheralConv2d)
    ]
    try:
        with FlopCounterMode(display=False, depth=None) as counter:
            output = module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    by_module = counter.get_flop_counts()
    counts = []
    for path, inner in module.named_modules():
        key = '.'.join(filter(None, (type(module).__name__, path)))
        if next(inner.children(), None) is None and key in by_module:
            executed = sum(by_module[key].values()) // 2
            counts.append(
                _Count(
                    f'{name}.{path}'.rstrip('.'),
                    dense.get(path, executed),
                    executed,
                )
            )
    # Products outside of any layer, such as those of attention.
    rest = counter.get_total_flops() // 2 - sum(c.executed for c in counts)
    if rest:
        counts.append(_Count(name, rest, rest))
    return output, counts


def _head_inputs(
    model: nn.Module, features: Sequence[Tensor], box_rois: int, mask_rois: int
) -> Iterator[tuple]:
    """Name of each head, and what it is called with."""
    if hasattr(model, 'decode_head'):
        for name in ('decode_head', 'auxiliary_head'):
            heads = getattr(model, name, None)
            if heads is None:
                continue
            several = isinstance(heads, nn.ModuleList)
            if several and name == 'decode_head':
                raise ValueError(
                    'segmentors that refine their own output '
                    f'({type(model).__name__}) cannot be counted'
                )
            for i in range(len(heads) if several else 1):
                yield (f'{name}.{i}' if several else name), features
        return
    for name in ('rpn_head', 'bbox_head', 'head'):
        if isinstance(getattr(model, name, None), nn.Module):
            yield name, features
    if hasattr(model, 'roi_head'):
        for kind, rois in (('bbox', box_rois), ('mask', mask_rois)):
            yield from _roi_inputs(model.roi_head, kind, rois)


def _roi_inputs(
    roi_head: nn.Module, kind: str, rois: int
) -> Iterator[tuple[str, Tensor]]:
    heads = getattr(roi_head, f'{kind}_head', None)
    if heads is None:
        return
    several = isinstance(heads, nn.ModuleList)
    for i in range(len(heads) if several else 1):
        pool = getattr(roi_head, f'{kind}_roi_extractor')
        if isinstance(pool, nn.ModuleList):
            pool = pool[i]
        size = pool.roi_layers[0].output_size
        name = f'roi_head.{kind}_head' + (f'.{i}' if several else '')
        yield name, torch.empty(rois, pool.out_channels, *size)
