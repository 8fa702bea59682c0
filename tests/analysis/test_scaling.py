"""Costs over the kernel size: counted, timed, drawn."""

import pytest
import torch

from pelk_mm.analysis import scaling
from pelk_mm.analysis.scaling import (
    candidates,
    count_convnext,
    draw_scaling,
    paper_grid,
)
from pelk_mm.ops import available_backends

#: Sum of depth times channels of ConvNeXt-T: its depthwise kernels.
KERNELS = 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768


@pytest.fixture(scope='module')
def counts():
    return count_convnext((7, 51, 151))


def test_the_published_convnext_is_among_them(counts):
    assert counts[0]['kernel_size'] == 7
    assert counts[0]['params']['dense'] / 1e6 == pytest.approx(28.59, abs=0.01)
    assert counts[0]['macs']['dense'] / 1e9 == pytest.approx(4.46, abs=0.01)


def test_only_the_kernels_differ(counts):
    first = counts[0]
    pixels = [(224 // stride) ** 2 for stride in (4, 8, 16, 32)]
    outputs = sum(
        depth * width * area
        for depth, width, area in zip(
            (3, 3, 9, 3), (96, 192, 384, 768), pixels, strict=True
        )
    )
    for row in counts:
        size, cells = row['kernel_size'], row['cells']
        assert cells == paper_grid(size).num_cells
        assert row['params']['dense'] - first['params']['dense'] == KERNELS * (
            size**2 - 49
        )
        assert row['params']['dense'] - row['params'][
            'peripheral'
        ] == KERNELS * (size**2 - cells**2)
        assert row['macs']['dense'] - first['macs']['dense'] == outputs * (
            size**2 - 49
        )
        # The box sums come on top of the multiplications.
        assert row['macs']['peripheral'] >= (
            row['macs']['dense'] - outputs * (size**2 - cells**2)
        )
    assert counts[2]['macs']['peripheral'] < 0.2 * counts[2]['macs']['dense']


def test_candidates_agree_and_are_checked(monkeypatch):
    calls = candidates(13, (1, 3, 20, 18))
    runs = {
        name
        for name, reason in available_backends('cpu').items()
        if reason is None
    }
    assert set(calls) == runs
    for call in calls.values():
        assert torch.allclose(call(), calls['dense'](), atol=1e-4)
    monkeypatch.setattr(
        scaling, 'peripheral_conv2d', lambda image, *_, **__: image
    )
    with pytest.raises(RuntimeError, match='its time would mean nothing'):
        candidates(13, (1, 3, 20, 18), ['fft'])


@pytest.mark.parametrize('counted, timed', [(1, 0), (0, 1), (1, 1)])
def test_every_series_is_drawn(counts, counted, timed):
    times = [
        dict(kernel_size=size, median_ms=dict(dense=2 * size, fft=28.0))
        for size in (51, 7)
    ]
    figure = draw_scaling(counts * counted, times * timed, 'on a test')
    assert len(figure.axes) == 2 * counted + timed
    for axis in figure.axes:
        assert (axis.get_xscale(), axis.get_yscale()) == ('log', 'log')
        assert axis.get_xlabel() and axis.get_ylabel()
        styles = {
            (line.get_color(), line.get_linestyle()) for line in axis.lines
        }
        assert len(styles) == len(axis.lines) == 2
    if counted:
        assert list(figure.axes[0].lines[0].get_xdata()) == [7, 51, 151]
    if timed:
        dense, fft = (line.get_ydata() for line in figure.axes[-1].lines)
        assert list(dense) == [51 / 7, 1] and list(fft) == [2, 2]
