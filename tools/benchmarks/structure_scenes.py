"""What the networks of structure_study.py learn: scenes of digits, in memory.

At each position of a map, four pixels wide, a class is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from pelk_mm.datasets.bar_scenes import COLOURS, draw_bar_scene
from pelk_mm.datasets.digit_drawing import (
    Handwritings,
    draw_digit,
    draw_scene,
    load_handwritings,
    luma,
)
from pelk_mm.utils.files import atomic_path

STRIDE = 4  # of the stem: one answer for so many pixels
STEP = 16  # of distances from the bar, in pixels
COLOURED = 0.25  # from this difference between channels on
SPLITS = ('train', 'val', 'test')
#: What scenes are of, and how many classes the digits' positions have.
CLASSES = {
    'scenes': 5,  # several of the digits 0 to 4: which one is here?
    'single': 5,  # one of them in the middle, and all positions are asked
    'bars': len(COLOURS),  # which colour has the bar?
}


@dataclass(frozen=True)
class Task:
    """Scenes, and how long what kind of network is trained on them."""

    kind: str  # a key of CLASSES
    size: int  # of a scene, in pixels
    steps: int
    depths: tuple[int, ...] = (1, 1)  # of the stages
    scenes: tuple[int, int, int] = (1200, 100, 200)  # by split
    trial: float = 0.5  # share of the steps that choose a learning rate


@dataclass(frozen=True)
class Scenes:
    """Pictures of a split, and what is asked at each position of a map."""

    images: np.ndarray  # (N, 3, H, W), uint8
    labels: np.ndarray  # (N, H / 4, W / 4), int8, -1 is the background
    # As labels, int8: -1 where no digit is, else its distance from the bar
    # in steps of 16 pixels, 0 without a bar.
    distances: np.ndarray

    def batch(self, part: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Images ``(n, 3, H, W)``, float32, and labels, int64."""
        # Unequal means, as in the demos: a LayerNorm tells light from dark.
        shift = torch.tensor([0.0, 127.5, 255.0]).view(3, 1, 1)
        images = torch.from_numpy(self.images[part])
        labels = torch.from_numpy(self.labels[part])
        return (images - shift) / 127.5, labels.long()


def load_scenes(task: Task, split: str, folder: Path) -> Scenes:
    """Draw scenes, or read those that were drawn before."""
    index = SPLITS.index(split)
    name = f'{task.kind}_{task.size}_{split}_{task.scenes[index]}'
    path = folder / f'{name}.npz'
    if not path.is_file():
        drawn = [draw(task, split, i) for i in range(task.scenes[index])]
        stacked = [np.stack(parts) for parts in zip(*drawn, strict=True)]
        with atomic_path(path) as temporary:
            np.savez(temporary, *stacked)
    with np.load(path) as saved:
        return Scenes(*(saved[name] for name in saved.files))


def draw(task: Task, split: str, index: int) -> tuple[np.ndarray, ...]:
    """A scene: the three arrays of :class:`Scenes`, without N."""
    rng = np.random.default_rng((SPLITS.index(split), index))
    samples = handwritings(split)
    easy = chosen(samples, samples.labels < CLASSES['scenes'])
    if task.kind == 'bars':
        picture, values = draw_bar_scene(rng, samples, task.size)
        labels = values.astype(np.int8) - 2
    elif task.kind == 'scenes':
        scene = draw_scene(rng, easy, task.size)
        picture = grey(scene.image)
        digits = np.array([*scene.labels, -1], np.int8)
        labels = digits[scene.owners]
    else:
        one = int(rng.integers(len(easy)))
        picture = grey(draw_digit(rng, easy.images[one], task.size))
        labels = np.full((task.size,) * 2, np.int8(easy.labels[one]))
    middle = slice(STRIDE // 2, None, STRIDE)
    distances = distance_steps(picture, labels >= 0)[middle, middle]
    image = np.rint(255 * picture).astype(np.uint8).transpose(2, 0, 1)
    return image, labels[middle, middle], distances


def grey(picture: np.ndarray) -> np.ndarray:
    """Without its colours, from black to white; ``(H, W, 3)``."""
    values = luma(picture)
    values = (values - values.min()) / np.ptp(values)
    return np.repeat(values[..., None], 3, axis=2)


def handwritings(split: str) -> Handwritings:
    """Those for validation are halved: for learning rates, and for tests."""
    found = load_handwritings()
    if split == 'train':
        return found['train']
    half = slice(SPLITS.index(split) - 1, None, 2)
    return chosen(found['val'], half)


def chosen(samples: Handwritings, part: np.ndarray | slice) -> Handwritings:
    return Handwritings(*(getattr(samples, n)[part] for n in vars(samples)))


def distance_steps(picture: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """How far each pixel of a digit is from what is coloured, in steps.

    ``picture`` is ``(H, W, 3)`` in [0, 1], ``digits`` is ``(H, W)``, bool;
    the result is int8, -1 elsewhere, and 0 if nothing is coloured.
    """
    plain = np.ptp(picture, axis=2) < COLOURED
    apart = np.zeros(plain.shape)
    if not plain.all():
        mask = cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        apart = cv2.distanceTransform(plain.astype(np.uint8), *mask)
    steps = (apart // STEP).astype(np.int8)
    return np.where(digits & plain, steps, np.int8(-1))
