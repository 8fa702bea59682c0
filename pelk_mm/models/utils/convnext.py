"""ConvNeXts in the files of other libraries, read as PeLKs.

A PeLK that convolves every channel, by one kernel and without positional
embeddings, is a ConvNeXt (https://arxiv.org/abs/2201.03545, V2:
https://arxiv.org/abs/2301.00808) with larger kernels. It computes the same
where the old kernel lies in the unshared centre and all other cells are zero.

What a state dict holds is told by its names and shapes: no other library is
imported. They do not tell a norm's eps, the activation or a dilation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...ops import SharingGrid
from ...utils.text import first_few
from ..archs import ARCHS, CONVNEXT_BLOCK
from .convnext_layouts import LAYOUTS, STAGES, VECTORS, Layout
from .kernel_growth import resize_centred

if TYPE_CHECKING:
    from ..backbones import PeLK

#: What tells a PeLK.
PELK_KERNEL = 'stages.0.blocks.0.conv.large.weight'
#: What one may have that no ConvNeXt has.
_BRANCH = ('small', 'small_norm', 'large_norm')


@dataclass(frozen=True)
class ConvNeXt:
    """A ConvNeXt in a state dict.

    Attributes:
        layout (str): Whose names it has.
        prefix (str): What they start with.
        names (dict[str, str]): PeLK's names by those in the state dict.
        head (dict[str, str]): ``'weight'`` and ``'bias'`` by the names of a
            classifier's linear layer.
        others (list[str]): Entries that no ConvNeXt has.
        weights (dict[str, Tensor]): By PeLK's names, as they are.
    """

    layout: str
    prefix: str
    names: dict[str, str]
    head: dict[str, str]
    others: list[str]
    weights: dict[str, Tensor]

    def __str__(self) -> str:
        version = ' V2' if self.has('grn.gamma') else ''
        return f'ConvNeXt{version} ({self.layout})'

    def has(self, part: str) -> bool:
        """Whether its blocks have a part, by PeLK's name."""
        return f'stages.0.blocks.0.{part}' in self.weights

    @cached_property
    def _kernels(self) -> list[list[Tensor]]:
        """Those of each stage."""
        return [
            [
                value
                for name, value in self.weights.items()
                if name.startswith(f'stages.{i}.')
                and name.endswith('.conv.large.weight')
            ]
            for i in range(STAGES)
        ]

    @property
    def depths(self) -> list[int]:
        """Blocks in each stage."""
        return [len(kernels) for kernels in self._kernels if kernels]

    @property
    def channels(self) -> list[int]:
        """Of each stage."""
        return [len(kernels[0]) for kernels in self._kernels if kernels]

    @property
    def kernel_sizes(self) -> list[int]:
        """Of each stage."""
        return [stage[0].shape[-1] for stage in self._kernels if stage]

    def check(self) -> None:
        """Raise a RuntimeError if no PeLK computes what it computes."""
        problems = [*self._oddities()]
        if problems:
            raise RuntimeError(
                f'the checkpoint holds a {self}, and {"; ".join(problems)}: '
                'no PeLK computes the same'
            )

    def grown(self, grids: Sequence[SharingGrid]) -> dict[str, Tensor]:
        """Its weights with PeLK's names and shapes, for a grid a stage.

        Raises:
            RuntimeError: If a kernel does not fit into the unshared centre.
        """
        for problem in self.misfits(grids):
            raise RuntimeError(f'the checkpoint holds a {self}: {problem}')
        return {
            name: _reshape(name, value, grids)
            for name, value in self.weights.items()
        }

    def misfits(self, grids: Sequence[SharingGrid]) -> Iterator[str]:
        """Why its kernels cannot be written in a grid of each stage."""
        sizes = self.kernel_sizes
        radii = [grid.unshared_radius for grid in grids[: len(sizes)]]
        needed = [size // 2 for size in sizes]
        if any(a > b for a, b in zip(needed, radii, strict=True)):
            yield (
                f'its kernels of {_squares(sizes)} need an unshared centre of '
                f'radius {max(needed)} in every stage, got radii {radii}'
            )

    def _oddities(self) -> Iterator[str]:
        """What is not as in every ConvNeXt."""
        stem = self.weights.get('downsample_layers.0.0.weight')
        if stem is not None and stem.shape[2:] != (4, 4):
            yield (
                f'its stem is a convolution of {_shape(stem.shape[2:])}, '
                "expected patches of 4×4 (timm's '_ols' overlap)"
            )
        elif self.others:
            yield f'also {first_few(self.others)}, which no ConvNeXt has'
        if not self.has('norm.bias'):
            yield "its norms have no bias (RMS norms, timm's '_rms')"
        for shape in {k.shape[1:] for stage in self._kernels for k in stage}:
            one, height, width = shape
            if one != 1 or height != width or height % 2 == 0:
                yield (
                    f'it has kernels of {_shape(shape)}, expected depthwise '
                    'ones of an odd size'
                )


def _shape(sizes: Sequence[int]) -> str:
    return '×'.join(map(str, sizes))


def _reshape(name: str, value: Tensor, grids: Sequence[SharingGrid]) -> Tensor:
    if name.endswith('.conv.large.weight'):
        grid = grids[int(name.split('.')[1])]
        return resize_centred(value, grid.num_cells)
    if '.pointwise_conv' in name and name.endswith('.weight'):
        return value.flatten(1)  # of a 1x1 convolution, or linear already
    return value.flatten() if name.endswith(VECTORS) else value


def _squares(sizes: Sequence[int]) -> str:
    """``'7×7'``, or one for each stage where they differ."""
    texts = [f'{size}×{size}' for size in sizes]
    if len({*texts}) == 1:
        return texts[0]
    return f'{", ".join(texts[:-1])} and {texts[-1]}'


def find_convnexts(state_dict: Mapping[str, Tensor]) -> list[ConvNeXt]:
    """All ConvNeXts in a state dict, whatever their names start with."""
    found = []
    for layout in LAYOUTS:
        for name in state_dict:
            prefix = name.removesuffix(layout.kernel())
            if prefix != name and (not prefix or prefix.endswith('.')):
                found.append(_find(layout, prefix, state_dict))
    return found


def _find(
    layout: Layout, prefix: str, state_dict: Mapping[str, Tensor]
) -> ConvNeXt:
    parent = prefix[: prefix[:-1].rfind('.') + 1]

    def depth(stage: int) -> int:
        return next(
            b
            for b in count()
            if prefix + layout.kernel(stage, b) not in state_dict
        )

    def beside(layer: str, ours: str) -> dict[str, str]:
        for where in (prefix, parent):
            names = {f'{where}{layer}.{k}': k for k in ('weight', 'bias')}
            if names.keys() & state_dict.keys():
                return {n: ours + k for n, k in names.items()}
        return {}

    depths = [depth(stage) for stage in range(STAGES)]
    names = {
        prefix + theirs: ours for theirs, ours in layout.pelk_names(depths)
    }
    for final in layout.final:
        names |= beside(final, f'norm{STAGES - 1}.')
    names = {name: ours for name, ours in names.items() if name in state_dict}
    # Behind a hidden layer (timm's '_mlp') it is not a head by itself.
    hidden = any('.pre_logits.' in name for name in state_dict)
    head = {} if hidden else beside(layout.head, '')
    head = {name: kind for name, kind in head.items() if name in state_dict}
    own = tuple(f'{prefix}{root}.' for root in layout.roots)
    others = [n for n in state_dict if n.startswith(own) and n not in names]
    weights = {ours: state_dict[name] for name, ours in names.items()}
    return ConvNeXt(layout.name, prefix, names, head, others, weights)


def as_pelk(
    model: PeLK, state_dict: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], str | None]:
    """Read the ConvNeXt under a prefix as this backbone.

    Returns:
        tuple[dict, str | None]: The state dict with it under PeLK's names,
        and a line that says what was read. The state dict as it is and None
        if there is no ConvNeXt, or several, or a PeLK.

    Raises:
        RuntimeError: If this backbone cannot compute the same. The message
            says which one can.
    """
    found = find_convnexts(state_dict)
    found = [one for one in found if one.prefix.startswith(prefix)]
    found = [one for one in found if one.prefix == prefix] or found
    if len(found) != 1 or prefix + PELK_KERNEL in state_dict:
        return dict(state_dict), None
    (convnext,) = found
    convnext.check()
    grids = [SharingGrid(k, model.center_radius) for k in model.kernel_sizes]
    problems = [*_differences(model, convnext), *convnext.misfits(grids)]
    if problems:
        raise RuntimeError(
            f'the checkpoint holds a {convnext} with depths '
            f'{convnext.depths} and channels {convnext.channels}, which this '
            f'PeLK cannot be: {"; ".join(problems)}. '
            f'Build it with {_advice(model, convnext)}'
        )
    rest = {k: v for k, v in state_dict.items() if k not in convnext.names}
    grown = convnext.grown(grids)
    rest |= {prefix + name: value for name, value in grown.items()}
    return rest, (
        f'read as {convnext}, {_squares(convnext.kernel_sizes)} kernels grown '
        f'to {_squares(model.kernel_sizes)}'
    )


def _differences(model: PeLK, convnext: ConvNeXt) -> Iterator[str]:
    """Why a backbone is another network, whatever its kernels."""
    built = len(model.stages)
    for field in ('depths', 'channels'):
        size = list(getattr(model, field))[:built]
        if size != getattr(convnext, field)[:built]:
            yield f'it has {field} {size}'
    own = model.state_dict()
    block = 'stages.0.blocks.0.'
    if len(own[PELK_KERNEL]) != model.channels[0]:
        yield 'it convolves only a part of the channels (conv_ratio)'
    if own.keys() & {f'{block}conv.{p}.weight' for p in _BRANCH}:
        yield 'it has a branch of small kernels, and norms (small_kernel)'
    if 'stages.0.pos_embed' in own:
        yield 'it has positional embeddings (pos_embed)'
    for part, title in (('gamma', 'LayerScale'), ('grn.gamma', 'GRN')):
        if (block + part in own) != convnext.has(part):
            has = 'no' if block + part in own else 'a'
            yield f'the checkpoint has {has} {title}, unlike it'


def _advice(model: PeLK, convnext: ConvNeXt) -> str:
    least = max(convnext.kernel_sizes)
    sizes = [max(size, least) for size in model.kernel_sizes]
    radius = max(model.center_radius, least // 2)
    return as_arguments(pelk_arguments(convnext, sizes, radius))


def pelk_arguments(
    convnext: ConvNeXt, kernel_sizes: Sequence[int], center_radius: int
) -> dict[str, Any]:
    """Arguments of the PeLK that computes the same, with larger kernels."""
    weights = convnext.weights
    arch = dict(
        depths=tuple(convnext.depths),
        channels=tuple(convnext.channels),
        kernel_sizes=tuple(kernel_sizes),
        center_radius=center_radius,
    )
    names = [name for name, settings in ARCHS.items() if settings == arch]
    arguments: dict[str, Any] = dict(arch=names[0]) if names else {}
    arguments = arguments or dict(arch=arch, **CONVNEXT_BLOCK)
    if convnext.has('grn.gamma'):
        arguments['use_grn'] = True
    if not convnext.has('gamma'):
        arguments['layer_scale_init_value'] = 0.0
    if any(name.endswith('norm_pre.weight') for name in convnext.names):
        # timm's '_hnf': the map is normalised before it is averaged.
        arguments['gap_before_final_norm'] = False
    outputs = [i for i in range(STAGES) if f'norm{i}.weight' in weights]
    if outputs[:-1]:
        arguments['out_indices'] = tuple(outputs)
    return arguments


def as_arguments(values: Mapping[str, Any]) -> str:
    """As one writes them in a call: ``arch='tiny', use_grn=True``."""
    return ', '.join(
        f'{name}=dict({as_arguments(value)})'
        if isinstance(value, Mapping)
        else f'{name}={value!r}'
        for name, value in values.items()
    )
