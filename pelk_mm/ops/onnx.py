"""The peripheral convolution in ONNX: one depthwise Conv, written out.

``torch.onnx.export`` meets it in two forms, neither of which needs an argument
from its caller. The exporter of torch.export's graphs takes decompositions
from torch's table. That of TorchScript asks a symbolic function, which is
registered when something is traced: torch.onnx is not imported before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import register_decomposition

_OPSET = 9


def _index(sizes: list[int], device: Any = 'cpu') -> Tensor:
    """The cell of every row, or column, of the kernel."""
    # The exporter that traces this has no place for torch.tensor's constant.
    cells = [
        torch.full((size,), cell, device=device)
        for cell, size in enumerate(sizes)
    ]
    return torch.cat(cells)


def _standard(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: list[int],
    backend: str,
) -> Tensor:
    """The operator out of torch's own."""
    index = _index(sizes, weight.device)
    kernel = weight.index_select(2, index).index_select(3, index)
    radius = sum(sizes) // 2
    return F.conv2d(input, kernel, bias, padding=radius, groups=len(weight))


def register_standard() -> None:
    """Add the decomposition to torch's table."""
    operator = torch.ops.pelk_mm.peripheral_conv2d.default
    register_decomposition(operator)(_standard)
    # Fake tensors of unknown sizes would take it for their kernel, unless
    # there is one in this table, too; then they take the operator's own.
    register_decomposition(operator, type='meta')(_standard)


@cache
def register_symbolic() -> None:
    """Tell TorchScript's exporter; done on the first trace."""
    from torch.onnx import register_custom_op_symbolic
    from torch.onnx.symbolic_helper import parse_args

    # torch 2.4 asks whether the type of the first is one of its own, and Any
    # is no type before Python 3.11.
    @parse_args('v', 'v', 'v', 'is', 's')
    def symbolic(  # type: ignore[no-untyped-def]
        g, input: Any, weight: Any, bias: Any, sizes: list[int], backend: str
    ) -> Any:
        index = g.op('Constant', value_t=_index(sizes))
        kernel = g.op('Gather', weight, index, axis_i=2)
        kernel = g.op('Gather', kernel, index, axis_i=3)
        tensors = [input, kernel]
        if not bias.node().mustBeNone():
            tensors.append(bias)
        output = g.op(
            'Conv',
            *tensors,
            group_i=weight.type().sizes()[0],
            kernel_shape_i=[sum(sizes)] * 2,
            pads_i=[sum(sizes) // 2] * 4,
        )
        return output.setType(input.type())

    name = 'pelk_mm::peripheral_conv2d'
    register_custom_op_symbolic(name, symbolic, _OPSET)
