"""Pictures of light handwritten digits on darker textures, in memory.

What is drawn depends on a NumPy generator and the handwritten samples alone.
Pictures are float arrays (H, W, 3), RGB, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image

# Each of the 64 elements of a handwritten sample is the share of ink in its
# square. From this value on, after sharpening by this strength, it is stroke.
_INK = 0.45
_SHARPENING = 1.2
# Rec. 709 weights: how bright a person finds red, green and blue.
_LUMA = np.array([0.2126, 0.7152, 0.0722])
# How much brighter a digit is than what lies around it, and by how much its
# brightness differs from that of digits that it touches, at least.
_CONTRAST = 0.3
_NEIGHBOR_CONTRAST = 0.08
# Of every digit at least this share of its pixels stays visible ...
_VISIBLE = 0.8
# ... and of the smaller of two bounding boxes at most this share is common.
_BOX_OVERLAP = 0.35
_PLACING_ATTEMPTS = 30


@dataclass(frozen=True)
class Handwritings:
    """Handwritten samples of one split."""

    images: np.ndarray  # (N, 8, 8), float64, 0 is paper and 1 is ink
    labels: np.ndarray  # (N,), int64, the digit that each sample shows
    indices: np.ndarray  # (N,), int64, places in scikit-learn's load_digits

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scene:
    """A picture and what is to be seen in it."""

    image: np.ndarray  # (H, W, 3), float64, RGB in [0, 1]
    labels: tuple[int, ...]  # the digit that each instance shows
    # (H, W), int64: the index of each pixel's instance; -1 is the background.
    owners: np.ndarray


@lru_cache(maxsize=1)
def load_handwritings() -> dict[str, Handwritings]:
    """scikit-learn's digits, 1433 samples 'train' and 364 'val'.

    The split depends on no seed, so that no network has seen a validation
    handwriting of another seed. A writer may appear in both.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digit scenes are made of the handwritten digits that come '
            'with scikit-learn, which cannot be imported; install it with '
            '`pip install scikit-learn`'
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    is_val = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_val[np.flatnonzero(labels == digit)[::5]] = True
    parts = {'train': ~is_val, 'val': is_val}
    return {
        split: Handwritings(images[part], labels[part], np.flatnonzero(part))
        for split, part in parts.items()
    }


def luma(color: np.ndarray) -> np.ndarray:
    """Brightness of RGB colours (..., 3), as a person sees it, (...)."""
    return color @ _LUMA


def _random_color(
    rng: Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    hue = rng.uniform()
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    # HSV to RGB: each channel is a trapezoid over the hue circle.
    distance = np.abs((hue * 6 + np.array([3, 1, 5])) % 6 - 3)
    return v * (1 - s * (1 - np.clip(distance - 1, 0, 1)))


def _resize(field: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(field.astype(np.float32))
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float64)


def _to_unit_range(field: np.ndarray) -> np.ndarray:
    field = field - field.min()
    return field / max(field.max(), 1e-6)


def _clouds(rng: Generator, size: int) -> np.ndarray:
    """Noise of several octaves, coarse ones strongest."""
    field = np.zeros((size, size))
    cells, strength = int(rng.integers(2, 5)), 1.0
    while cells < size:
        noise = rng.uniform(-1, 1, (cells + 1, cells + 1))
        field += strength * _resize(noise, size)
        cells, strength = cells * 2, strength * 0.55
    return _to_unit_range(field)


def _grid(size: int) -> np.ndarray:
    """y and x of each pixel, (2, size, size), 0 to 1."""
    return np.mgrid[:size, :size] / size


def _distance(size: int, center: np.ndarray) -> np.ndarray:
    return np.hypot(*(_grid(size) - center[:, None, None]))


def _ramp(rng: Generator, size: int) -> np.ndarray:
    """Distance along a random direction."""
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    return x * np.cos(angle) + y * np.sin(angle)


def _gradient(rng: Generator, size: int) -> np.ndarray:
    return _to_unit_range(_ramp(rng, size))


def _stripes(rng: Generator, size: int) -> np.ndarray:
    periods, bend = rng.uniform(3, 12), rng.uniform(0, 0.15)
    along = _ramp(rng, size) + bend * _clouds(rng, size)
    sharpness = rng.uniform(1, 6)
    wave = np.sin(2 * np.pi * (periods * along + rng.uniform()))
    return 0.5 + 0.5 * np.tanh(sharpness * wave) / np.tanh(sharpness)


def _checks(rng: Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    angle, periods = rng.uniform(0, np.pi), rng.uniform(2, 7)
    u = np.sin(2 * np.pi * periods * (x * np.cos(angle) + y * np.sin(angle)))
    v = np.sin(2 * np.pi * periods * (y * np.cos(angle) - x * np.sin(angle)))
    return 0.5 + 0.5 * np.tanh(rng.uniform(1, 8) * u * v)


def _rings(rng: Generator, size: int) -> np.ndarray:
    radius = _distance(size, rng.uniform(-0.3, 1.3, 2))
    return 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 9) * radius)


def _spots(rng: Generator, size: int) -> np.ndarray:
    field = np.zeros((size, size))
    for _ in range(int(rng.integers(8, 30))):
        distance = _distance(size, rng.uniform(0, 1, 2))
        spot = (rng.uniform(0.02, 0.12) - distance) * 30
        field = np.maximum(field, np.clip(spot, 0, 1))
    return field


_PATTERNS = (_clouds, _gradient, _stripes, _checks, _rings, _spots)


def _background(rng: Generator, size: int) -> np.ndarray:
    """A texture (size, size, 3): a pattern in two rather dark colours."""
    first = _random_color(rng, (0.05, 0.75), (0.1, 0.6))
    # A second colour of its own hue, but brought near to the first one's
    # brightness: room must be left for digits to stand out.
    second = _random_color(rng, (0.05, 0.75), (0.1, 0.6))
    gap = rng.choice([-1, 1]) * rng.uniform(0.06, 0.2)
    second = np.clip(second + luma(first) + gap - luma(second), 0, 1)

    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng, size)
    share = rng.uniform(0.1, 0.4)
    mixed = (1 - share) * pattern + share * _clouds(rng, size)
    picture = first + mixed[..., None] * (second - first)
    grain = rng.normal(0, rng.uniform(0.005, 0.03), (size, size, 1))
    return np.clip(picture + grain, 0, 1)


def _sharpen(samples: np.ndarray) -> np.ndarray:
    """Raise (h, w) over its 3 x 3 neighbourhoods: small holes stay open."""
    h, w = samples.shape
    padded = np.pad(samples, 1)
    mean = sum(padded[i : i + h, j : j + w] for i, j in np.ndindex(3, 3)) / 9
    return samples + _SHARPENING * (samples - mean)


#: How much of each pixel the stroke covers, and how strongly the pen was
#: pressed there, (h, w) each, float64 in [0, 1].
Glyph = tuple[np.ndarray, np.ndarray]


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set in a mask (h, w)."""
    return Image.fromarray(mask).getbbox()


def draw_glyph(rng: Generator, handwriting: np.ndarray, size: float) -> Glyph:
    """Draw a sample (8, 8), ``size`` pixels large, slightly turned, slanted.

    Cut at half-ink, which gives back a pen stroke with a sharp edge. A pixel
    belongs to the digit where the stroke covers at least one half of it; the
    maps are cropped to these pixels.
    """
    samples = _sharpen(np.pad(handwriting, 2)).astype(np.float32)
    angle, slant = rng.uniform(-0.15, 0.15, 2)
    stretch = rng.uniform(0.9, 1.1)
    cos, sin = np.cos(angle), np.sin(angle)
    # From pixels of the canvas, (x, y), to elements of the sample.
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = turn @ np.array([[stretch, slant], [0, 1]]) * (8 / size)
    side = int(np.ceil(1.7 * size))
    shift = len(samples) / 2 - matrix @ np.array([side / 2, side / 2])
    affine = np.column_stack([matrix, shift]).ravel()
    method = Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    glyph = Image.fromarray(samples).transform((side, side), *method)
    drawn = np.asarray(glyph, np.float64)
    # The edge is a pixel wide: the ink rises by about one per element.
    stroke = np.clip((drawn - _INK) * (size / 8) + 0.5, 0, 1)
    left, top, right, bottom = bounding_box(stroke >= 0.5)
    box = slice(top, bottom), slice(left, right)
    return stroke[box], np.clip(drawn[box], 0, 1)


def _ink_color(
    rng: Generator, around: np.ndarray, neighbors: list[np.ndarray]
) -> np.ndarray:
    """A light colour that stands out from its surroundings (h, w, 3)."""
    below = luma(around).mean() + _CONTRAST
    beside = np.array([luma(color) for color in neighbors])
    best, most = None, -np.inf
    for _ in range(40):
        color = _random_color(rng, (0.0, 0.6), (0.7, 1.0))
        # How far it is beyond the nearest limit.
        gaps = abs(beside - luma(color)) - _NEIGHBOR_CONTRAST
        room = min([luma(color) - below, *gaps])
        if room > most:
            best, most = color, room
        if room >= 0:
            break
    return best


def _paint(
    rng: Generator, window: np.ndarray, glyph: Glyph, beside: list[np.ndarray]
) -> np.ndarray:
    """Lay a glyph (h, w) over a window (h, w, 3); return its colour."""
    stroke, pressure = glyph
    color = _ink_color(rng, window, beside)
    cover = stroke * (0.65 + 0.35 * pressure)
    window += cover[..., None] * (color - window)
    return color


def draw_digit(
    rng: Generator, handwriting: np.ndarray, size: int
) -> np.ndarray:
    """A picture (size, size, 3) of one sample (8, 8), roughly centred."""
    picture = _background(rng, size)
    height = rng.uniform(0.5, 0.75) * size
    glyph = draw_glyph(rng, handwriting, height)
    jitter = rng.uniform(-0.08, 0.08, 2) * size
    free = size - np.array(glyph[0].shape)
    top, left = np.clip(np.rint(free / 2 + jitter).astype(int), 0, free)
    _paint(rng, picture[_window(top, left, glyph[0])], glyph, [])
    return picture


def _window(top: int, left: int, mask: np.ndarray) -> tuple[slice, slice]:
    """Where a mask (h, w) lies in a picture."""
    height, width = mask.shape
    return slice(top, top + height), slice(left, left + width)


def _common(one: slice, other: slice) -> int:
    """How many indices two slices share."""
    return max(min(one.stop, other.stop) - max(one.start, other.start), 0)


@dataclass
class _Placed:
    """A digit in a scene: which, where, its pixels (h, w) and its colour."""

    label: int
    window: tuple[slice, slice]
    mask: np.ndarray
    color: np.ndarray


def _has_room(
    window: tuple[slice, slice],
    mask: np.ndarray,
    owners: np.ndarray,
    placed: list[_Placed],
) -> bool:
    """Whether a digit would leave enough to be seen of those before it."""
    for other in placed:
        common = _common(window[0], other.window[0])
        common *= _common(window[1], other.window[1])
        if common > _BOX_OVERLAP * min(mask.size, other.mask.size):
            return False
    left_over = owners.copy()
    left_over[window][mask] = -1
    visible = [(left_over == i).sum() for i in range(len(placed))]
    areas = [_VISIBLE * other.mask.sum() for other in placed]
    return np.greater_equal(visible, areas).all()


def draw_scene(rng: Generator, handwritings: Handwritings, size: int) -> Scene:
    """Draw a scene of up to six digits that overlap a little.

    A digit is 3/16 to 9/16 of the scene high, lies wholly within it, and
    keeps four fifths of its pixels visible.
    """
    picture = _background(rng, size)
    owners = np.full((size, size), -1)
    placed: list[_Placed] = []
    for _ in range(int(rng.integers(2, 7))):
        chosen = rng.integers(len(handwritings))
        height = size * rng.uniform(3 / 16, 9 / 16)
        glyph = draw_glyph(rng, handwritings.images[chosen], height)
        mask = glyph[0] >= 0.5
        for _ in range(_PLACING_ATTEMPTS):
            top, left = (int(rng.integers(size - n + 1)) for n in mask.shape)
            window = _window(top, left, mask)
            if _has_room(window, mask, owners, placed):
                break
        else:
            continue
        covered = np.unique(owners[window])
        neighbors = [placed[i].color for i in covered if i >= 0]
        color = _paint(rng, picture[window], glyph, neighbors)
        owners[window][mask] = len(placed)
        label = int(handwritings.labels[chosen])
        placed.append(_Placed(label, window, mask, color))
    return Scene(picture, tuple(digit.label for digit in placed), owners)
