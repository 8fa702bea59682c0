"""Parameters and multiply-accumulates of a config's model, by part.

Nothing is computed: the model is built and run on torch's meta device, which
knows shapes only, so that Cascade Mask R-CNN at 1280 x 800 takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import PeLK, PeripheralConv2d

#: Where a parameter or an operation of PeLK belongs, by the start of its name.
_PARTS = (
    (r'downsample_layers\.0\.', 'stem'),
    (r'downsample_layers\.', 'downsampling'),
    (r'stages\.\d+\.(pos_embed$|blocks\.\d+\.conv\.)', 'large kernels'),
    (r'stages\.', 'FFN'),
    (r'norm\d', 'output norms'),
)
#: Counted by the paper with the share of weights that sparsity leaves.
BACKBONE_PARTS = tuple(dict.fromkeys(part for _, part in _PARTS))


@dataclass
class Part:
    """Counts of one part of a model.

    Attributes:
        name (str): Such as ``'stem'``.
        params (int): All parameters.
        nonzero (float): Parameters with sparsity: the given share of every
            2-D and 4-D weight of the backbone and of a classifier is zero.
        macs_paper (float): Multiply-accumulates as the paper counts them:
            kernels executed dense, sparse weights not at all, no auxiliary
            head.
        macs_dense (int): Kernels executed dense, every weight.
        macs_executed (int): What the peripheral operator executes.
    """

    name: str
    params: int = 0
    nonzero: float = 0.
    macs_paper: float = 0.
    macs_dense: int = 0
    macs_executed: int = 0


@dataclass
class Complexity:
    """Counts of a model for one image, whole and by part."""

    shape: tuple[int, int]
    sparsity: float
    parts: list[Part]

    def total(self, field: str) -> float:
        """Sum of a field of :class:`Part` over the parts."""
        return sum(getattr(part, field) for part in self.parts)

    def as_dict(self) -> dict:
        """For JSON."""
        fields = [name for name in Part.__dataclass_fields__ if name != 'name']
        return dict(
            asdict(self), total={name: self.total(name) for name in fields})


def count_complexity(config: Config,
                     shape: Sequence[int],
                     sparsity: float = 0.4,
                     box_rois: int = 1000,
                     mask_rois: int = 100) -> Complexity:
    """Count the model of a config for one image.

    Multiply-accumulates are those of convolutions and matrix products, of the
    merged backbone, as it is deployed; parameters are those that are trained.

    Args:
        config (Config): Of mmpretrain, mmsegmentation or mmdetection, with
            any backbone; only PeLK's is split into parts.
        shape (Sequence[int]): Height and width of the image, in pixels.
        sparsity (float): Share of zeros in the sparse weights, 0 to 1.
            Default: 0.4.
        box_rois (int): Boxes that each stage of a detector's box head sees.
            Default: 1000.
        mask_rois (int): The same of the mask heads. Default: 100.

    Returns:
        Complexity: The counts.

    Raises:
        ValueError: If the shape does not suit the model's strides, the
            sparsity is out of range, or the model is of an unknown kind.
    """
    if len(shape) != 2 or any(size < 32 or size % 32 for size in shape):
        raise ValueError('the shape must be a height and a width, multiples '
                         f'of 32, got {tuple(shape)}')
    if not 0 <= sparsity < 1:
        raise ValueError(f'sparsity must be in [0, 1), got {sparsity}')
    trained = _build(config, deploy=False)
    parts = _count_parameters(trained, sparsity)
    merged = _build(config, deploy=True)
    with torch.device('meta'), torch.no_grad():
        image = torch.empty(1, 3, *shape)
        _count_operations(merged, image, parts, 1 - sparsity, box_rois,
                          mask_rois)
    return Complexity(tuple(shape), sparsity, list(parts.values()))


def _build(config: Config, deploy: bool) -> nn.Module:
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = deepcopy(config.model)
    model.backbone.init_cfg = None
    if deploy and model.backbone.type.split('.')[-1] == 'PeLK':
        model.backbone.deploy = True
    with torch.device('meta'):
        return MODELS.build(model).eval()


def _part_name(model: nn.Module, name: str) -> str:
    """The part that a parameter of the whole model belongs to."""
    first, _, rest = name.partition('.')
    if first == 'backbone' and isinstance(model.backbone, PeLK):
        return next(part for pattern, part in _PARTS
                    if re.match(pattern, rest))
    if first in ('backbone', 'neck'):
        return first
    return 'auxiliary head' if first.startswith('auxiliary') else 'head'


def _count_parameters(model: nn.Module, sparsity: float) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    classifier = not (hasattr(model, 'decode_head')
                      or hasattr(model, 'roi_head'))
    for name, parameter in model.named_parameters():
        part_name = _part_name(model, name)
        part = parts.setdefault(part_name, Part(part_name))
        masked = parameter.ndim in (2, 4) and (name.startswith('backbone.')
                                               or classifier)
        part.params += parameter.numel()
        part.nonzero += parameter.numel() * (1 - sparsity if masked else 1)
    return parts


def _count_operations(model: nn.Module, image: Tensor, parts: dict[str, Part],
                      density: float, box_rois: int, mask_rois: int) -> None:

    def add(name: str, dense: int, executed: int, share: float) -> None:
        part = parts.setdefault(name, Part(name))
        part.macs_dense += dense
        part.macs_executed += executed
        part.macs_paper += dense * share

    features, counts = _run_backbone(model, image)
    for name, (dense, executed) in counts.items():
        add(name, dense, executed, density)
    if hasattr(model, 'decode_head'):
        add('head', *2 * (_macs(model.decode_head, features), ), 1)
        if model.with_auxiliary_head:
            add('auxiliary head',
                *2 * (_macs(model.auxiliary_head, features), ), 0)
        return
    if getattr(model, 'with_neck', False):
        macs, features = _run(model.neck, features)
        add('neck', macs, macs, 1)
    if hasattr(model, 'roi_head'):
        for head in _detection_heads(model, features, box_rois, mask_rois):
            add('head', *2 * (head(), ), 1)
    elif hasattr(model, 'head'):
        add('head', *2 * (_macs(model.head, features), ), density)
    else:
        raise ValueError(
            f'{type(model).__name__} is neither a classifier, a segmentor nor '
            'a two-stage detector')


def _run(call: Callable, *inputs) -> tuple[int, object]:
    with FlopCounterMode(display=False) as counter:
        output = call(*inputs)
    return counter.get_total_flops() // 2, output


def _macs(call: Callable, *inputs) -> int:
    return _run(call, *inputs)[0]


def _run_backbone(
        model: nn.Module,
        image: Tensor) -> tuple[tuple[Tensor, ...], dict[str, tuple]]:
    """Run the backbone; dense and executed counts by part."""
    backbone = model.backbone
    with _dense_counts(backbone) as dense, FlopCounterMode(
            display=False, depth=None) as counter:
        features = backbone(image)
    if not isinstance(backbone, PeLK):
        macs = counter.get_total_flops() // 2
        return features, {'backbone': (macs, macs)}
    counts: dict[str, tuple[int, int]] = {}
    by_module = counter.get_flop_counts()
    for name, module in backbone.named_modules():
        key = f'{type(backbone).__name__}.{name}'
        if next(module.children(), None) is not None or key not in by_module:
            continue
        executed = sum(by_module[key].values()) // 2
        part = _part_name(model, f'backbone.{name}.')
        before = counts.get(part, (0, 0))
        counts[part] = (before[0] + dense.get(name, executed),
                        before[1] + executed)
    return features, counts


@contextmanager
def _dense_counts(backbone: nn.Module) -> Iterator[dict[str, int]]:
    """Note what every peripheral convolution would cost if run dense."""
    dense: dict[str, int] = {}

    def note(name: str) -> Callable:

        def hook(module: PeripheralConv2d, inputs, output: Tensor) -> None:
            dense[name] = output.numel() * module.grid.kernel_size**2

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in backbone.named_modules()
        if isinstance(module, PeripheralConv2d)
    ]
    try:
        yield dense
    finally:
        for handle in handles:
            handle.remove()


def _detection_heads(model: nn.Module, features: Sequence[Tensor],
                     box_rois: int, mask_rois: int) -> Iterator[Callable]:
    """Calls that run each head of a two-stage detector once."""
    if model.with_rpn:
        yield lambda: _macs(model.rpn_head, features)
    heads = model.roi_head

    def stages(name: str, rois: int) -> Iterator[Callable]:
        head = getattr(heads, f'{name}_head', None)
        extractor = getattr(heads, f'{name}_roi_extractor', None)
        if head is None:
            return
        several = isinstance(head, nn.ModuleList)
        for i, stage in enumerate(head if several else [head]):
            pool = extractor
            if isinstance(extractor, nn.ModuleList):
                pool = extractor[i]
            size = pool.roi_layers[0].output_size
            region = torch.empty(rois, pool.out_channels, *size)
            yield lambda stage=stage, region=region: _macs(stage, region)

    yield from stages('bbox', box_rois)
    yield from stages('mask', mask_rois)
