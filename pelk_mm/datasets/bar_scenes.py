"""Bar scenes: digit scenes for which a network has to see far.

A coloured bar somewhere in the picture decides the class of all digits in it:
red ones or blue ones. All else is grey and says nothing about the class, so
that far from the bar only a network that reaches it can be right. Written in
the form of ADE20K, as :mod:`~pelk_mm.datasets.digit_scenes` are: 1 is the
background, 2 and 3 are digits with a red and a blue bar. The bar is of their
class, so that the colours are learned at once and the reach is what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from .digit_drawing import Handwritings, draw_scene, luma
from .digit_scenes import SceneRecipe, write_ade

#: RGB of the bars.
COLOURS = {'red': (0.9, 0.15, 0.1), 'blue': (0.1, 0.3, 0.95)}
#: ``metainfo`` of mmsegmentation's ``BaseSegDataset``.
BAR_METAINFO = {
    'classes': ('background', *COLOURS),
    'palette': [(64, 64, 64), (230, 25, 75), (0, 130, 200)],
}


def draw_bar_scene(
    rng: Generator, handwritings: Handwritings, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene with a bar, upright or lying, that is a third long.

    Returns:
        tuple[ndarray, ndarray]: The picture ``(size, size, 3)``, RGB in
        [0, 1], and the values of its annotation ``(size, size)``, uint8.
    """
    scene = draw_scene(rng, handwritings, size)
    grey = luma(scene.image)
    grey = (grey - grey.min()) / np.ptp(grey)
    picture = np.repeat(grey[..., None], 3, axis=2)
    kind = int(rng.integers(len(COLOURS)))
    values = np.where(scene.owners < 0, 1, 2 + kind).astype(np.uint8)
    height, width = rng.permutation([size // 3, size // 8])
    top, left = rng.integers([size - height + 1, size - width + 1])
    window = slice(top, top + height), slice(left, left + width)
    picture[window] = list(COLOURS.values())[kind]
    values[window] = 2 + kind
    return picture, values


@dataclass(frozen=True)
class BarRecipe(SceneRecipe):
    """What bar scenes are made with, by ``make_digit_scenes``."""

    seed: int = 0

    def write(
        self, root: Path, handwritings: dict[str, Handwritings]
    ) -> Iterator[None]:
        for part, (split, samples) in enumerate(handwritings.items()):
            for index in range(getattr(self, f'{split}_scenes')):
                rng = np.random.default_rng((self.seed, part, index))
                drawn = draw_bar_scene(rng, samples, self.scene_size)
                write_ade(root, split, index + 1, *drawn)
                yield
