"""Rows of small pictures with captions and a legend, in one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from textwrap import fill

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..utils.files import atomic_path

#: Width over height.
_SCREEN = 1.6
#: Characters of a caption that fit above a panel.
_CAPTION = 24


@dataclass(frozen=True)
class Panel:
    """An image ``(H, W, 3)``, uint8 RGB, and what to write above it."""

    image: np.ndarray
    caption: str = ''


def colour_labels(
    labels: np.ndarray, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Paint a map ``(H, W)`` of classes by a palette of red, green and blue.

    What is outside of it, such as the 255 of ignored pixels, becomes white.
    """
    colours = np.array([*palette, (255, 255, 255)], np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    return colours[np.where(known, labels, len(palette))]


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
    scores: np.ndarray | None = None,
    scale: int = 3,
) -> np.ndarray:
    """Draw boxes, masks and class names onto an enlarged uint8 RGB image.

    Boxes are ``(N, 4)``, left, top, right and bottom in pixels; masks
    ``(N, H, W)``, bool or 0 and 1; scores ``(N,)``; colours 0 to 255.
    """
    shaded = image.astype(np.float32)
    for mask, label in zip(masks, labels, strict=True):
        inside = mask.astype(bool)
        shaded[inside] = (shaded[inside] + np.array(palette[label])) / 2
    large = shaded.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        left, top, right, bottom = np.rint(box * scale).astype(int).tolist()
        colour = tuple(map(int, palette[label]))
        cv2.rectangle(large, (left, top), (right, bottom), colour, 2)
        text = classes[label]
        if scores is not None:
            text += f' {scores[i]:.2f}'
        where = (left + 2, max(top - 4, 12))
        font = cv2.FONT_HERSHEY_SIMPLEX, 0.45
        # A dark edge keeps the text readable on every background.
        for ink, thickness in (((0, 0, 0), 3), (colour, 1)):
            style = *font, ink, thickness, cv2.LINE_AA
            cv2.putText(large, text, where, *style)
    return large


def draw_rows(
    rows: Sequence[Sequence[Panel]],
    path: str | Path,
    title: str = '',
    legend: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Draw rows of panels, all of one length, under each other, as PNG.

    As many rows stand side by side as make the picture fit a screen. The
    legend has colours by name.
    """
    path = Path(path)
    width = len(rows[0])

    def unlike_a_screen(abreast: int) -> float:
        return abs(log(width * abreast / ceil(len(rows) / abreast) / _SCREEN))

    abreast = min(range(1, len(rows) + 1), key=unlike_a_screen)
    lines = ceil(len(rows) / abreast)
    # No column stays empty.
    abreast = ceil(len(rows) / lines)
    size = (1.7 * width * abreast, 1.8 * lines + 1.1)
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title)
    # An empty column sets rows that stand side by side apart.
    ratios = ([*[1] * width, 0.02] * abreast)[:-1]
    axes = figure.subplots(
        lines, len(ratios), squeeze=False, width_ratios=ratios
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, row in enumerate(rows):
        side, line = divmod(number, lines)
        for column, panel in enumerate(row):
            axis = axes[line, side * (width + 1) + column]
            axis.imshow(panel.image, interpolation='nearest')
            axis.set_title(fill(panel.caption, _CAPTION), fontsize=8)
    if legend:
        patches = [Patch(color=np.divide(rgb, 255)) for rgb in legend.values()]
        style = dict(loc='outside lower center', fontsize=8, frameon=False)
        columns = min(len(legend), 6 * abreast)
        figure.legend(patches, list(legend), ncols=columns, **style)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=110, format='png')
    return path
