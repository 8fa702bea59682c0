"""Single tries of what may be broken; runs as a script of its own.

``probes.py RESULTS NAME…`` tries one after the other and appends what became
of it to the file ``RESULTS``, a JSON object a line. It stops at the first
failure, because what is imported by halves would spoil the next try; and it
may be killed by what it tries. :mod:`.processes` starts it and reads the file.
Nothing of pelk_mm may be imported at the top: whether that works is one of
the questions.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
#: In the order in which they are tried, and what has to work for a try.
PROBES: dict[str, Callable[[], Facts]] = {}
NEEDS: dict[str, tuple[str, ...]] = {}
#: Those that try more than to import a package of their name.
MORE = ('torch_numpy', 'torch_cuda', 'mmcv_ops', 'operator')


def needs(*names: str) -> Callable:
    """Make a function a probe, to be tried where those before it work."""

    def register(probe: Callable[[], Facts]) -> Callable[[], Facts]:
        PROBES[probe.__name__], NEEDS[probe.__name__] = probe, names
        return probe

    return register


def _version(name: str, *parts: str) -> Facts:
    """Import a package, and parts that it does not import by itself."""
    module = importlib.import_module(name)
    for part in parts:
        importlib.import_module(f'{name}.{part}')
    return {'version': str(getattr(module, '__version__', 'unknown'))}


@needs()
def numpy() -> Facts:
    return _version('numpy')


@needs()
def torch() -> Facts:
    facts = _version('torch')
    import torch

    facts.update(cuda=torch.version.cuda, gpus=[])
    # The driver may count GPUs that torch cannot use.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        gpu = torch.cuda.get_device_properties(index)
        found = dict(name=gpu.name, capability=[gpu.major, gpu.minor])
        found['memory_gib'] = round(gpu.total_memory / 2**30, 1)
        facts['gpus'].append(found)
    return facts


@needs('numpy', 'torch')
def torch_numpy() -> Facts:
    """A torch that was built for another numpy only warns when imported."""
    import numpy
    import torch

    torch.from_numpy(numpy.zeros(1)).numpy()
    return {}


@needs('torch')
def torch_cuda() -> Facts:
    """A GPU that torch sees need not be one that its kernels run on."""
    import torch

    for index in range(torch.cuda.device_count()):
        float(torch.ones(2, device=f'cuda:{index}').sum())
    return {}


@needs('torch')
def torchvision() -> Facts:
    """Its compiled operators are missing where torch is another one."""
    facts = _version('torchvision')
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return facts


@needs('numpy')
def cv2() -> Facts:
    return _version('cv2')


@needs('torch', 'cv2')
def mmengine() -> Facts:
    return _version('mmengine', 'runner')


@needs('mmengine')
def pkg_resources() -> Facts:
    """mmengine imports it late, to find the configs of other packages."""
    return _version('pkg_resources')


@needs('mmengine')
def mmcv() -> Facts:
    return _version('mmcv')


@needs('mmcv')
def mmcv_ops() -> Facts:
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    nms(boxes, torch.ones(1), iou_threshold=0.5)
    cuda = get_compiling_cuda_version()
    return {'cuda': None if cuda == 'not available' else cuda}


@needs('torch', 'mmengine', 'mmcv')
def pelk_mm() -> Facts:
    facts = _version('pelk_mm')
    from mmengine.registry import MODELS

    if MODELS.get('pelk_mm.PeLK') is None:
        text = 'it is imported, but pelk_mm.PeLK is not registered'
        raise RuntimeError(text)
    return facts


@needs('mmcv')
def mmpretrain() -> Facts:
    return _version('mmpretrain', 'models')


@needs('pelk_mm')
def mmseg() -> Facts:
    # Without compiled operators in mmcv it works once pelk_mm is imported.
    importlib.import_module('pelk_mm')
    return _version('mmseg', 'models')


@needs('mmcv_ops')
def mmdet() -> Facts:
    return _version('mmdet', 'models')


# Knows torch alone, but is imported from within the package.
@needs('pelk_mm')
def operator() -> Facts:
    """Run every backend on the devices here; those not yet built are."""
    import torch

    from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
    from pelk_mm.ops.backends import BACKENDS

    grid = SharingGrid(13)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(1, 2, 16, 16, generator=generator)
    cells = grid.num_cells
    weight = torch.randn(2, 1, cells, cells, generator=generator)
    exact = input.double(), weight.double()
    expected = peripheral_conv2d(*exact, grid, backend='dense')

    def run(device: str, name: str) -> str | None:
        """What is wrong with a backend."""
        x, w = input.to(device), weight.to(device)
        try:
            output = peripheral_conv2d(x, w, grid, backend=name).cpu()
            error = float((output - expected).abs().max())
        except Exception as failure:
            return f'{type(failure).__name__}: {failure}'
        error /= float(expected.abs().max())
        # `not <=` counts NaN as wrong.
        if not error <= 1e-3:
            return f'its result is off by {error:.1e} of the largest value'
        return None

    found: dict[str, dict[str, str | None]] = {}
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        found[device] = available_backends(device, torch.float32)
        for name, reason in found[device].items():
            if reason is None:
                found[device][name] = run(device, name)
    facts: Facts = {'backends': found, 'library': None}
    if library := getattr(BACKENDS['cpp'], 'library', None):
        runs = library.instruction_set
        facts['library'] = dict(path=str(library.path), instruction_set=runs)
    return facts


def _try(name: str) -> dict[str, Any]:
    """The arguments of an outcome."""
    try:
        return {'state': 'works', 'facts': PROBES[name]()}
    # SystemExit too: some packages leave that way.
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return {'state': 'absent', 'message': 'it is not installed'}
        lines = str(error).strip().splitlines() or ['no message']
        # Long messages, such as a compiler's, say what it is at their ends.
        text = lines[0] if len(lines) == 1 else f'{lines[0]} … {lines[-1]}'
        kind = type(error).__name__
        return {'state': 'fails', 'message': f'{kind}: {text.strip()}'}


def _try_all(results: Path, names: list[str]) -> None:
    for name in names:
        outcome = _try(name)
        with results.open('a', encoding='utf-8') as file:
            file.write(json.dumps([name, outcome]) + '\n')
        if outcome['state'] != 'works':
            return


if __name__ == '__main__':
    _try_all(Path(sys.argv[1]), sys.argv[2:])
