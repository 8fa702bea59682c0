"""What the figures of the analysis tools have in common."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..utils.files import atomic_path

#: Two colours that stay apart in grey: one dark, one light.
STRONG = '#9c3306'
SOFT = '#5b9bd0'
INK = '#222222'
FAINT = '#8a8a8a'


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> Path:
    """Write a PNG whole or not at all; another suffix is a ValueError."""
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise ValueError(f'figures are PNG files, got the name {path}')
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=dpi, format='png', facecolor='white')
    return path
