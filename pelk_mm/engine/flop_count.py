"""The peripheral convolution in mmengine's counters of operations.

They trace a model and know operators by name: get_model_complexity_info, which
the libraries' tools/analysis_tools/get_flops.py call, and FlopAnalyzer. One
multiply-add is one operation to them and two to torch.
"""

from __future__ import annotations

from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import generic_activation_jit

from ..ops.flops import count_flops

_NAME = 'pelk_mm::peripheral_conv2d'


def _count(inputs: list[Any], outputs: list[Any]) -> int:
    """Half of what torch's FlopCounterMode says, for one node of a graph."""
    *_, sizes, backend = inputs
    shape = outputs[0].type().sizes()
    # A node of the graph makes a list of constants.
    cells = [size.toIValue() for size in sizes.node().inputs()]
    return count_flops(shape, cells, backend.toIValue()) // 2


def register() -> None:
    """Add it to what mmengine's analyzers know when they are made."""
    kinds = dict(FLOP=_count, ACT=generic_activation_jit('conv'))
    for kind, handle in kinds.items():
        known = getattr(complexity_analysis, f'_DEFAULT_SUPPORTED_{kind}_OPS')
        known[_NAME] = handle
