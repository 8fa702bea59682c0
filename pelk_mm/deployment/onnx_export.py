"""ONNX files that any runtime reads: standard operators only."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..utils.errors import LaunchError, need
from ..utils.files import atomic_path
from ..utils.output import silent
from .compare import TOLERANCE, Difference, check_close
from .networks import Network, check_shape, example
from .standard_layers import to_standard_layers
from .variants import METADATA, load_onnx

OPSET = 18
#: torch 2.4 exports from TorchScript alone.
EXPORTS = 'dynamic_shapes' in inspect.signature(torch.onnx.export).parameters
INPUT = 'image'


@dataclass(frozen=True)
class OnnxExport:
    """What :func:`export_onnx` wrote.

    ``operators`` are counted by name; ``differences`` are those of
    onnxruntime's outputs to the network's.
    """

    path: Path
    operators: dict[str, int]
    differences: list[Difference]


class _Half(nn.Module):
    """Half precision inside, single precision outside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in self.network(image.half()))


@torch.no_grad()
def export_onnx(
    network: Network,
    path: str | Path,
    shape: Sequence[int],
    *,
    kernels: str = 'dense',
    dynamic: bool = False,
    half: bool = False,
    metadata: Mapping[str, object] | None = None,
    each: Callable[[str], None] = lambda text: None,
) -> OnnxExport:
    """Write a network as ONNX and hold the file against the network.

    The file runs in onnxruntime, with random images, before it appears under
    its name; one that computes something else never does.

    Args:
        network: Merged if it is not yet.
        shape: Height and width of images in pixels, multiples of 32.
        kernels: ``'dense'`` or ``'compact'``, see
            :func:`~pelk_mm.deployment.standard_layers.to_standard_layers`.
        dynamic: Take any number of images of any size in steps of 32.
        half: Compute in float16; input and outputs stay float32.
        metadata: Put into the file as JSON.
        each: Called with what is about to be done.

    Raises:
        LaunchError: If the shape is none, or packages are missing.
        RuntimeError: If onnxruntime computes something else than torch.
    """
    check_shape(shape)
    onnx, _, _ = need('onnx', 'onnxscript', 'onnxruntime')
    if not EXPORTS:
        raise LaunchError(
            'ONNX files are written with torch 2.6 or newer, this is '
            f'{torch.__version__}'
        )
    network.merge()
    standard = to_standard_layers(network, kernels)
    images, dimensions = example(shape, dynamic)
    precision = 'fp16' if half else 'fp32'
    fields = dict(kernels=kernels, precision=precision, shape=list(shape))
    fields = {**(metadata or {}), **fields, 'dynamic': dynamic}
    with atomic_path(path) as temporary:
        # Known before the long part: whether it can be written at all.
        temporary.touch()
        each('exporting')
        with silent('torch.onnx', 'onnxscript'):
            model = _Half(standard) if half else standard
            names = dict(input_names=[INPUT], output_names=[*network.names])
            how = dict(dynamo=True, opset_version=OPSET, verbose=False)
            how.update(dynamic_shapes=dimensions, **names)
            program = torch.onnx.export(model, (images,), **how)
        program.model.metadata_props[METADATA] = json.dumps(fields)
        each('writing')
        program.save(str(temporary), external_data=False)
        del program, standard, model
        each('checking with onnxruntime')
        onnx.checker.check_model(str(temporary))
        operators = count_operators(temporary)
        foreign = [name for name in operators if '::' in name]
        if foreign:
            text = f'the network has operators outside ONNX: {foreign}'
            raise RuntimeError(f'{text}; nothing is written')
        written, tolerance = load_onnx(temporary), TOLERANCE[precision]
        differences = check_close(network, written, shape, dynamic, tolerance)
    return OnnxExport(Path(path), operators, differences)


def count_operators(path: str | Path) -> dict[str, int]:
    """Operators of an ONNX file and its functions, the most frequent first.

    Those that are not of ONNX itself are ``domain::name``.
    """
    (onnx,) = need('onnx')
    model = onnx.load(str(path), load_external_data=False)
    nodes = [*model.graph.node]
    for function in model.functions:
        nodes += function.node
    counts: Counter[str] = Counter()
    while nodes:
        node = nodes.pop()
        domain = f'{node.domain}::' if node.domain else ''
        counts[domain + node.op_type] += 1
        for attribute in node.attribute:
            nodes += attribute.g.node
    return dict(counts.most_common())
