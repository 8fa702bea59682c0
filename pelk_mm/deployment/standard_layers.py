"""Networks out of ordinary layers alone, for runtimes without our operator."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import (
    PartialPeripheralConv2d,
    PeripheralConv2d,
    SmallConv2d,
)
from ..ops import SharingGrid

#: How a large kernel is computed; see :func:`to_standard_layers`.
FORMS = ('dense', 'compact')
#: In the compact form cells of fewer rows, or columns, are written out as
#: single positions. More boxes save multiply-adds and cost passes over the
#: map; on onnxruntime's CPU kernels these two are at or near the best from
#: maps of 14 x 14 to 128 x 128 and kernels of 13 to 101.
_LEAST_ROWS, _LEAST_COLUMNS = 16, 2
#: onnxruntime keeps channels in blocks of 8 or 16, by the CPU. A depthwise
#: convolution of another number of channels falls back to a kernel that is
#: an order of magnitude slower.
_BLOCK = 16


class StandardPeripheralConv2d(nn.Module):
    """A peripheral convolution out of ordinary depthwise convolutions.

    With ``B_{s,t}`` the sums of boxes of s rows and t columns,
    ``Y(p) = sum_{s,t} sum_{a,b} w(a, b) B_{s,t}(p + o(a, b))`` over the cells
    (a, b) of s x t positions. Boxes are convolutions with ones, first of the
    rows and then of the columns. The cells of one size lie either side by
    side in the centre or as mirrored pairs, so that one dilated convolution
    takes the inner sum. Nothing depends on the size of the map.

    Args:
        layer (PeripheralConv2d | SmallConv2d): Whose weights to take.
        least_rows (int): Cells of fewer rows are written out as single
            positions.
        least_columns (int): The same for columns. With both beyond the
            largest cell one dense convolution is left.
    """

    def __init__(
        self,
        layer: PeripheralConv2d | SmallConv2d,
        least_rows: int,
        least_columns: int,
    ) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.channels = len(weight)
        sizes = layer.grid.sizes
        rows, repeats = _write_out(sizes, least_rows)
        weight = weight.repeat_interleave(torch.tensor(repeats), 2)
        columns, repeats = _write_out(sizes, least_columns)
        weight = weight.repeat_interleave(torch.tensor(repeats), 3)
        self.rows, self.columns = list(_groups(rows)), list(_groups(columns))
        for i, row in enumerate(self.rows):
            for j, column in enumerate(self.columns):
                taps = weight[:, :, row.cells][..., column.cells]
                self.register_buffer(f'taps_{i}_{j}', taps.contiguous())
        ones = weight.new_ones(self.channels, 1, 1, 1)
        for size in {row.size for row in self.rows} - {1}:
            self.register_buffer(f'rows_{size}', ones.repeat(1, 1, size, 1))
        for size in {column.size for column in self.columns} - {1}:
            self.register_buffer(f'columns_{size}', ones.repeat(1, 1, 1, size))
        self.register_buffer(
            'bias', None if layer.bias is None else layer.bias.detach()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``; same shape and dtype."""
        boxes: dict[tuple[int, int], Tensor] = {(1, 1): x}
        output = None
        for i, row in enumerate(self.rows):
            for j, column in enumerate(self.columns):
                taps = F.conv2d(
                    self._box(boxes, row, column),
                    getattr(self, f'taps_{i}_{j}'),
                    self.bias if output is None else None,
                    padding=(row.tap_padding, column.tap_padding),
                    dilation=(row.dilation, column.dilation),
                    groups=self.channels,
                )
                output = taps if output is None else output + taps
        return output

    def _box(
        self, boxes: dict[tuple[int, int], Tensor], row: _Group, column: _Group
    ) -> Tensor:
        """Sums of boxes, built once each."""
        if (row.size, 1) not in boxes:
            boxes[row.size, 1] = F.conv2d(
                boxes[1, 1],
                getattr(self, f'rows_{row.size}'),
                padding=(row.box_padding, 0),
                groups=self.channels,
            )
        if (row.size, column.size) not in boxes:
            boxes[row.size, column.size] = F.conv2d(
                boxes[row.size, 1],
                getattr(self, f'columns_{column.size}'),
                padding=(0, column.box_padding),
                groups=self.channels,
            )
        return boxes[row.size, column.size]


class _Group:
    """Cells of one size along one axis that one convolution can read.

    They lie symmetrically around the centre: a run of neighbours, or two.

    Args:
        size (int): Of each cell, in positions.
        cells (list[int]): Which they are.
        offsets (list[int]): Their first positions, from the centre.
    """

    def __init__(
        self, size: int, cells: list[int], offsets: list[int]
    ) -> None:
        self.size, self.cells = size, cells
        self.dilation = offsets[1] - offsets[0] if len(offsets) > 1 else 1
        # How far the box of the outermost cell reaches from the centre. Boxes
        # are computed wherever they meet the map, the taps see zeros beyond.
        reach = offsets[-1] + size - 1
        self.box_padding = min(size - 1, reach)
        self.tap_padding = reach - self.box_padding


def _write_out(
    sizes: Sequence[int], least: int
) -> tuple[list[int], list[int]]:
    """Cells below ``least`` as single positions; how often weights repeat."""
    repeats = [size if size < least else 1 for size in sizes]
    written = [
        size // repeat
        for size, repeat in zip(sizes, repeats, strict=True)
        for _ in range(repeat)
    ]
    return written, repeats


def _groups(sizes: Sequence[int]) -> Iterator[_Group]:
    """Split the cells of a symmetric axis into groups."""
    starts = SharingGrid.from_sizes(sizes).starts
    offsets = [start - sum(sizes) // 2 for start in starts]
    first = len(sizes) // 2
    size = sizes[first]
    while first > 0 and sizes[first - 1] == size:
        first -= 1
    centre = list(range(first, len(sizes) - first))
    for cells in (centre, *([i, len(sizes) - 1 - i] for i in range(first))):
        yield _Group(sizes[cells[0]], cells, [offsets[i] for i in cells])


class PlainAdaptiveAvgPool2d(nn.Module):
    """Adaptive average pooling as two matrix products, for maps of any size.

    ONNX has no such operator: exporters write down what one size needs.

    Args:
        output_size (tuple[int, int]): Rows and columns of the result.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(N, C, H, W)``."""
        rows = _bins(x.shape[2], self.output_size[0], x)
        columns = _bins(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.transpose(0, 1)


def _bins(size: int, bins: int, like: Tensor) -> Tensor:
    """What each of the ``bins`` takes of each position, ``(bins, size)``."""
    # In float32: a whole quotient is exact, others are far from whole ones.
    # Integer division would become a dozen operators in ONNX.
    edges = (
        torch.arange(bins + 1, device=like.device, dtype=torch.float32)
        * size
        / bins
    )
    first, end = edges[:-1, None].floor(), edges[1:, None].ceil()
    position = torch.arange(size, device=like.device, dtype=torch.float32)
    inside = (position >= first) & (position < end)
    return (inside.to(torch.float32) / (end - first)).to(like.dtype)


def to_standard_layers(model: nn.Module, form: str) -> nn.Module:
    """Copy a merged network with ordinary layers in place of our operator.

    Args:
        model (nn.Module): Merged; not changed.
        form (str): ``'dense'`` writes the kernels out as single K x K
            convolutions, ``'compact'`` computes them by box sums. Both are
            exact.

    Returns:
        nn.Module: The copy, in eval mode.

    Raises:
        ValueError: If the network is in training form, or there is no such
            form.
    """
    if form not in FORMS:
        raise ValueError(f'form must be one of {FORMS}, got {form!r}')
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, PartialPeripheralConv2d):
            if not module.merged:
                raise ValueError(
                    'only merged networks have a plain form: call '
                    'switch_to_deploy() first'
                )
            _fill_block(module)
    # Listed first: what is found is replaced.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (PeripheralConv2d, SmallConv2d)):
                beyond = child.grid.kernel_size + 1
                least = (
                    (_LEAST_ROWS, _LEAST_COLUMNS)
                    if form == 'compact'
                    else (beyond, beyond)
                )
                setattr(parent, name, StandardPeripheralConv2d(child, *least))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                size = _pair(child.output_size)
                if None not in size and size != (1, 1):
                    setattr(parent, name, PlainAdaptiveAvgPool2d(size))
    return model


def _pair(size: int | Sequence[int | None] | None) -> tuple:
    return tuple(size) if isinstance(size, Sequence) else (size, size)


def _fill_block(conv: PartialPeripheralConv2d) -> None:
    """Convolve a few more channels, with kernels that change nothing.

    The number of convolved channels becomes a multiple of what onnxruntime's
    blocked kernels want. A one in the centre and zeros around it passes a
    channel on exactly.
    """
    convolved, passed = conv.split
    more = -convolved % _BLOCK
    layer = conv.large
    if more > passed or layer.grid.unshared_radius < 0:
        return
    conv.split = (convolved + more, passed - more)
    identity = torch.zeros_like(layer.weight[:1])
    middle = layer.grid.num_cells // 2
    identity[..., middle, middle] = 1
    layer.weight = _frozen(layer.weight, identity, more)
    layer.bias = _frozen(layer.bias, torch.zeros_like(layer.bias[:1]), more)
    layer.channels += more
    if conv.small is not None:
        small = conv.small
        small.weight = _frozen(
            small.weight, torch.zeros_like(small.weight[:1]), more
        )
        small.in_channels += more
        small.out_channels += more
        small.groups += more


def _frozen(tensor: Tensor, more: Tensor, count: int) -> nn.Parameter:
    return nn.Parameter(
        torch.cat((tensor.detach(), *[more] * count)), requires_grad=False
    )
