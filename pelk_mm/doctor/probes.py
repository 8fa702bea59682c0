"""Single tries of what may be broken; runs as a script of its own.

``probes.py RESULTS NAME…`` tries one after the other and appends what it finds
to the file ``RESULTS``, a JSON object a line. It stops at the first failure,
because what is imported by halves would spoil the next try; and it may be
killed by what it tries. :mod:`.processes` starts it and reads the file.
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


def _version(name: str) -> Facts:
    module = importlib.import_module(name)
    return {
        'version': str(getattr(module, '__version__', 'unknown')),
        'where': str(getattr(module, '__file__', None)),
    }


def numpy() -> Facts:
    return _version('numpy')


def cv2() -> Facts:
    return _version('cv2')


def torch() -> Facts:
    facts = _version('torch')
    import torch

    facts['cuda'] = torch.version.cuda
    facts['gpus'] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            facts['gpus'].append(
                {
                    'name': properties.name,
                    'capability': [properties.major, properties.minor],
                    'memory_gib': round(properties.total_memory / 2**30, 1),
                }
            )
    return facts


def torch_numpy() -> Facts:
    """A torch that was built for another numpy only warns when imported."""
    import numpy
    import torch

    torch.from_numpy(numpy.zeros(1)).numpy()
    return {}


def torch_cuda() -> Facts:
    """A GPU that torch sees need not be one that its kernels run on."""
    import torch

    for index in range(torch.cuda.device_count()):
        float(torch.ones(2, device=f'cuda:{index}').sum())
    return {}


def torchvision() -> Facts:
    """Its compiled operators are missing where torch is another one."""
    facts = _version('torchvision')
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return facts


def mmengine() -> Facts:
    facts = _version('mmengine')
    import mmengine.runner  # noqa: F401, imports what it needs only here

    return facts


def mmcv() -> Facts:
    return _version('mmcv')


def mmcv_ops() -> Facts:
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    nms(boxes, torch.ones(1), iou_threshold=0.5)
    cuda = get_compiling_cuda_version()
    return {'cuda': None if cuda == 'not available' else cuda}


def mmpretrain() -> Facts:
    facts = _version('mmpretrain')
    import mmpretrain.models  # noqa: F401

    return facts


def mmseg() -> Facts:
    facts = _version('mmseg')
    import mmseg.models  # noqa: F401

    return facts


def mmdet() -> Facts:
    facts = _version('mmdet')
    import mmdet.models  # noqa: F401

    return facts


def pelk_mm() -> Facts:
    facts = _version('pelk_mm')
    from mmengine.registry import MODELS

    if MODELS.get('pelk_mm.PeLK') is None:
        raise RuntimeError(
            'it is imported, but pelk_mm.PeLK is not registered'
        )
    return facts


def operator() -> Facts:
    """Run every backend on the devices here; those not yet built are."""
    import torch

    from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d

    devices = ['cpu'] + ['cuda'] * torch.cuda.is_available()
    grid = SharingGrid(13)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(1, 2, 16, 16, generator=generator)
    weight = torch.randn(
        2, 1, grid.num_cells, grid.num_cells, generator=generator
    )
    expected = peripheral_conv2d(
        input.double(), weight.double(), grid, backend='dense'
    )
    found: dict[str, dict[str, str | None]] = {}
    for device in devices:
        found[device] = available_backends(device, torch.float32)
        for name, reason in found[device].items():
            if reason is not None:
                continue
            try:
                output = peripheral_conv2d(
                    input.to(device), weight.to(device), grid, backend=name
                )
                error = float(
                    (output.cpu() - expected).abs().max()
                    / expected.abs().max()
                )
            except Exception as failure:
                found[device][name] = f'{type(failure).__name__}: {failure}'
                continue
            # `not <=` counts NaN as wrong.
            if not error <= 1e-3:
                found[device][name] = (
                    f'its result is off by {error:.1e} of the largest value'
                )
    return {'backends': found}


#: In the order in which they are tried.
PROBES: dict[str, Callable[[], Facts]] = {
    probe.__name__: probe
    for probe in (
        numpy,
        torch,
        torch_numpy,
        torch_cuda,
        torchvision,
        cv2,
        mmengine,
        mmcv,
        mmcv_ops,
        mmpretrain,
        mmseg,
        mmdet,
        pelk_mm,
        operator,
    )
}


def _try_all(results: Path, names: list[str]) -> None:
    with results.open('a', encoding='utf-8') as file:

        def tell(**entry: Any) -> None:
            file.write(json.dumps(entry) + '\n')
            file.flush()

        for name in names:
            tell(probe=name, event='start')
            try:
                facts = PROBES[name]()
            # SystemExit too: some packages leave that way.
            except BaseException as error:
                tell(
                    probe=name,
                    event='error',
                    kind=type(error).__name__,
                    message=str(error).strip(),
                    missing=getattr(error, 'name', None)
                    if isinstance(error, ModuleNotFoundError)
                    else None,
                )
                return
            tell(probe=name, event='end', facts=facts)


if __name__ == '__main__':
    _try_all(Path(sys.argv[1]), sys.argv[2:])
