"""How sparse the layers of a checkpoint are, and stay when merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..engine.sparsity.state import STATE_KEY, unpack_masks
from ..utils.files import atomic_path


@dataclass(frozen=True)
class LayerDensity:
    """Non-zero weights of a layer, or those that its mask keeps."""

    name: str
    shape: tuple[int, ...]
    weights: int
    nonzero: int
    masked: bool

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.nonzero / self.weights

    def as_dict(self) -> dict[str, Any]:
        """Fields and density, for JSON."""
        return dict(asdict(self), density=self.density)


def layer_densities(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[LayerDensity]:
    """Count non-zero weights, 2-D and 4-D, by their bool masks if given."""
    layers = []
    for name, weight in weights.items():
        shape, numel = tuple(weight.shape), weight.numel()
        if len(shape) in (2, 4) and weight.is_floating_point() and numel:
            nonzero = int(masks.get(name, weight).count_nonzero())
            counts = numel, nonzero, name in masks
            layers.append(LayerDensity(name, shape, *counts))
    return layers


def checkpoint_densities(checkpoint: Mapping[str, Any]) -> list[LayerDensity]:
    """Count non-zero weights in a checkpoint, by its masks if it has any.

    ValueError if there is no 2-D or 4-D weight, or the masks are damaged.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    state = checkpoint.get(STATE_KEY)
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    layers = layer_densities(tensors, unpack_masks(state) if state else {})
    if not layers:
        raise ValueError(
            'the checkpoint has no 2-D or 4-D weights; expected those of a '
            'model'
        )
    return layers


def merged_densities(model: nn.Module) -> dict[str, LayerDensity]:
    """Merge a model, in place, and count kernels that are less sparse for it.

    A small kernel that is merged into a large one fills zeros of it. Those
    whose zeros changed are counted by them, as a merged kernel has no mask.
    """
    before = {layer.name: layer.nonzero for layer in _zeros(model)}
    for module in model.modules():
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    return {
        layer.name: layer
        for layer in _zeros(model)
        if layer.nonzero != before.get(layer.name)
    }


def _zeros(model: nn.Module) -> list[LayerDensity]:
    return layer_densities(dict(model.named_parameters()), {})


def plot_densities(layers: Iterable[LayerDensity], path: str | Path) -> None:
    """Draw the density of every layer, in the order of the network."""
    from matplotlib.figure import Figure

    layers = list(layers)
    figure = Figure(figsize=(max(6.0, 0.14 * len(layers)), 4.5))
    axes = figure.subplots()
    for kind in dict.fromkeys(map(_kind, layers)):
        where = [i for i, x in enumerate(layers) if _kind(x) == kind]
        axes.bar(where, [layers[i].density for i in where], label=kind)
    nonzero = sum(layer.nonzero for layer in layers)
    total = nonzero / sum(layer.weights for layer in layers)
    axes.axhline(total, color='0.3', lw=1, ls='--', label=f'all {total:.3f}')
    axes.set(xlim=(-0.6, len(layers) - 0.4), ylim=(0, 1.02))
    axes.set_xlabel('weight, in the order of the checkpoint')
    axes.set_ylabel('density')
    place = dict(loc='lower left', bbox_to_anchor=(0, 1))
    axes.legend(ncols=4, frameon=False, **place)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _kind(layer: LayerDensity) -> str:
    if len(layer.shape) == 2:
        return 'linear'
    return 'depthwise' if layer.shape[1] == 1 else 'convolution'
