"""How far two variants of a network are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from .networks import STRIDE, Network, random_images

#: Largest difference that passes, over the largest value of an output, by the
#: precision that a variant computes in.
TOLERANCE = {'fp32': 1e-4, 'fp16': 2e-2}


@dataclass(frozen=True)
class Difference:
    """The largest difference in one output, over all images.

    ``absolute`` is infinite if anything is not a number; ``scale`` is the
    largest absolute value of the reference.
    """

    name: str
    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference over the largest value."""
        if self.absolute in (0, inf):
            return self.absolute
        return self.absolute / self.scale if self.scale else inf


def difference(name: str, reference: Tensor, candidate: Tensor) -> Difference:
    """Compare one output of one batch, in float64, of one shape."""
    if reference.shape != candidate.shape:
        raise ValueError(
            f'{name} is {tuple(candidate.shape)}, expected '
            f'{tuple(reference.shape)} as in the reference'
        )
    reference, candidate = reference.double(), candidate.double()
    apart = (reference - candidate).abs().max().item()
    scale = reference.abs().max().item()
    # Not a number compares with nothing: it must not pass for small.
    return Difference(name, apart if apart < inf else inf, scale)


def compare(
    reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
) -> list[Difference]:
    """Compare all outputs of one batch; others are a ValueError."""
    if reference.keys() != candidate.keys():
        raise ValueError(
            f'the outputs are {", ".join(candidate)}, expected '
            f'{", ".join(reference)}: is this a model of another task?'
        )
    return [
        difference(name, output, candidate[name])
        for name, output in reference.items()
    ]


def largest(differences: Iterable[Difference]) -> list[Difference]:
    """Of each output the difference of the batch where it is largest."""
    worst: dict[str, Difference] = {}
    for found in differences:
        known = worst.setdefault(found.name, found)
        if found.relative > known.relative:
            worst[found.name] = found
    return list(worst.values())


@torch.no_grad()
def check_close(
    network: Network,
    candidate: Callable[[Tensor], Mapping[str, Tensor]],
    shape: Sequence[int],
    dynamic: bool,
    tolerance: float,
) -> list[Difference]:
    """Raise unless what was made of a network computes what it does.

    Images are random, of ``shape``; ``dynamic`` tries two of another size too.
    Relative differences, one an output, pass up to ``tolerance``.
    """
    batches = [random_images(shape, seed=1)]
    if dynamic:
        height, width = shape
        batches.append(random_images((height + STRIDE, width), 2, seed=2))
    found: list[Difference] = []
    for images in batches:
        found += compare(network.outputs(images), candidate(images))
    worst = largest(found)
    for output in worst:
        if not output.relative <= tolerance:
            raise RuntimeError(
                f'{output.name} of the exported file differs from that of '
                f'the network by {output.relative:.1e} of its largest value, '
                f'more than {tolerance:.0e}; nothing is written'
            )
    return worst
