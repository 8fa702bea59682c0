"""Depthwise convolutions whose kernels were made larger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...ops import SharingGrid
from ..openmmlab import KNOWN_CONVS, SAME_CONVS
from .peripheral_conv import PeripheralConv2d
from .replacing import is_changed


class EnlargedConv2d(PeripheralConv2d):
    """What a depthwise convolution computes, with a larger kernel.

    The old kernel lies in the unshared centre, every cell outside is zero.
    State dicts may hold a weight of either shape, so that weights of the
    network as it was load as they did.

    Args:
        conv (nn.Conv2d): What is replaced. The bias is shared with it, the
            weight is a copy.
        grid (SharingGrid): The cells of the larger kernel.

    Raises:
        ValueError: If :func:`why_not_enlarged` has a reason.
    """

    def __init__(self, conv: nn.Conv2d, grid: SharingGrid) -> None:
        reason = why_not_enlarged(conv, grid)
        if reason is not None:
            raise ValueError(f'{conv} cannot be enlarged: {reason}')
        # Nothing is drawn that would not be used.
        with torch.device('meta'):
            super().__init__(conv.in_channels, grid, bias=False)
        self.old_shape = conv.weight.shape
        middle = grid.num_cells // 2
        self._old_rows, self._old_columns = (
            slice(middle - span // 2, middle + span // 2 + 1, step)
            for span, step in zip(_spans(conv), conv.dilation, strict=True)
        )
        weight = self.embed(conv.weight.detach())
        self.weight = nn.Parameter(weight, conv.weight.requires_grad)
        self.bias = cast('nn.Parameter | None', conv.bias)
        self.train(conv.training)

    def embed(self, weight: Tensor) -> Tensor:
        """Write a weight of the old shape in the cells.

        Args:
            weight (Tensor): ``(C, 1, h, w)``, the old kernel's rows and
                columns.

        Returns:
            Tensor: ``(C, 1, k', k')``, same dtype and device. A weight of any
            other shape is returned as it is.
        """
        if weight.shape != self.old_shape:
            return weight
        cells = self.grid.num_cells
        embedded = weight.new_zeros(*weight.shape[:2], cells, cells)
        embedded[:, :, self._old_rows, self._old_columns] = weight
        return embedded

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        state_dict = embed_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, old={tuple(self.old_shape[2:])}'


def embed_weights(
    model: nn.Module, state_dict: Mapping[str, Any], prefix: str = ''
) -> dict[str, Any]:
    """A state dict with the shapes that enlarged layers have themselves.

    Args:
        model (nn.Module): With any number of :class:`EnlargedConv2d`.
        state_dict (Mapping): Of it, or of it before it was enlarged.
        prefix (str): Of the model's names in it. Default: ``''``.
    """
    embedded = dict(state_dict)
    for name, module in model.named_modules(prefix=prefix.rstrip('.')):
        key = f'{name}.weight' if name else 'weight'
        if isinstance(module, EnlargedConv2d) and key in embedded:
            embedded[key] = module.embed(embedded[key])
    return embedded


def why_not_enlarged(conv: nn.Conv2d, grid: SharingGrid) -> str | None:
    """Why a depthwise convolution cannot take a larger kernel, or None.

    It must be an ordinary one of stride 1 that pads with zeros to the same
    size, and its kernel must fit into the unshared centre of the grid.
    """
    if set(conv.stride) != {1}:
        return f'stride {max(conv.stride)}'
    kind = type(conv)
    if (
        kind.forward not in [known.forward for known in KNOWN_CONVS]
        or kind._conv_forward is not nn.Conv2d._conv_forward
        or 'forward' in vars(conv)
    ):
        return f'{kind.__name__} with a forward pass of its own'
    if is_changed(conv):
        return 'hooks or parametrizations, which would be lost'
    if conv.padding_mode != 'zeros':
        return f'padding_mode {conv.padding_mode!r}'
    spans = _spans(conv)
    if any(span % 2 for span in spans):
        return 'an even kernel'
    if not (
        conv.padding == 'same'
        or isinstance(conv, SAME_CONVS)
        or [2 * pad for pad in conv.padding] == spans
    ):
        return f'padding {conv.padding}, which changes the size'
    reach = max(spans) // 2
    if 2 * reach + 1 >= grid.kernel_size:
        return f'a size of {2 * reach + 1} already'
    if reach > grid.unshared_radius:
        return f'a size of {2 * reach + 1}, for center_radius={reach} or more'
    return None


def _spans(conv: nn.Conv2d) -> list[int]:
    """Positions from the first weight to the last, along each axis."""
    sizes = zip(conv.kernel_size, conv.dilation, strict=True)
    return [step * (size - 1) for size, step in sizes]
