"""Packages for torch alone, with the compact operator as one node."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import torch

from ..ops.checks import check_choice
from ..utils.files import atomic_path
from ..utils.output import silent
from .compare import TOLERANCE, Difference, check_close
from .networks import Network, check_shape, example
from .variants import METADATA, load_package

#: What is written: torch's graph, or machine code compiled from it.
KINDS = ('exported', 'compiled')


@dataclass(frozen=True)
class TorchExport:
    """What :func:`export_torch` wrote, and its error by output."""

    path: Path
    differences: list[Difference]


@torch.no_grad()
def export_torch(
    network: Network,
    path: str | Path,
    shape: Sequence[int],
    *,
    kind: str = 'exported',
    dynamic: bool = False,
    metadata: Mapping[str, object] | None = None,
    each: Callable[[str], None] = lambda text: None,
) -> TorchExport:
    """Write a merged network as a ``.pt2`` package and check what it computes.

    Large kernels stay one call of ``pelk_mm::peripheral_conv2d`` each, which
    chooses its backend when it runs; ``import pelk_mm.ops`` before loading
    such a file.

    Args:
        network: Merged if it is not yet.
        shape: Height and width of images in pixels, multiples of 32.
        kind: ``'exported'``, a graph for ``torch.export.load``, or
            ``'compiled'``, a package of AOTInductor for
            ``torch._inductor.aoti_load_package``, made for this kind of CPU.
        dynamic: Take any number of images of any size in steps of 32 from 64.
        metadata: Put into the file as JSON.
        each: Called with what is about to be done.

    Raises:
        RuntimeError: If the package computes something else.
        ValueError: If an argument is none of the above.
    """
    check_choice('kind', kind, KINDS)
    if Path(path).suffix != '.pt2':
        raise ValueError(f'the name must end in .pt2, got {path}')
    check_shape(shape)
    network.merge()
    images, dimensions = example(shape, dynamic)
    fields = dict(shape=list(shape), dynamic=dynamic, names=network.names)
    text = json.dumps({**(metadata or {}), **fields})
    with (
        silent('torch._inductor', 'torch.utils.cpp_extension'),
        atomic_path(path) as temporary,
    ):
        # Known before the long part: whether it can be written at all.
        temporary.touch()
        each('exporting')
        program = torch.export.export(
            network, (images,), dynamic_shapes=dimensions
        )
        if kind == 'exported':
            for node in program.graph.nodes:
                # The lines of code that it comes from, with their files.
                node.meta.pop('stack_trace', None)
            extra = {METADATA: text}
            torch.export.save(program, temporary, extra_files=extra)
        else:
            each('compiling')
            options = {'aot_inductor.metadata': {METADATA: text}}
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(temporary), inductor_configs=options
            )
            _leave_out_paths(temporary)
        each('checking')
        written = load_package(temporary)
        differences = check_close(
            network, written, images.shape[2:], dynamic, TOLERANCE['fp32']
        )
        # An open library keeps its file.
        del written
    return TorchExport(Path(path), differences)


def _leave_out_paths(package: Path) -> None:
    """Take the local paths out of a compiled package.

    They are in its C++ sources, which are emptied (the loader wants to see
    them), and in the messages of the assertions in its library, where dots
    take their place.
    """
    from torch._inductor.runtime.runtime_utils import cache_dir

    folders = [cache_dir(), str(Path(torch.__file__).parents[1])]
    with ZipFile(package) as archive:
        parts = {info: archive.read(info) for info in archive.infolist()}
    with ZipFile(package, 'w') as archive:
        for info, content in parts.items():
            if info.filename.endswith('.cpp'):
                content = b''
            for folder in map(os.fsencode, folders):
                content = content.replace(folder, b'.' * len(folder))
            archive.writestr(info, content)
