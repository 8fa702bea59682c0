"""Which backend runs a call."""

from __future__ import annotations

import logging

import torch

from .backends import BACKENDS, Backend, BackendError
from .sharing_grid import SharingGrid

_logger = logging.getLogger('pelk_mm')


def why_not(backend: Backend, device: torch.device,
            dtype: torch.dtype) -> str | None:
    """Get a backend ready; None if it runs there, otherwise the reason."""
    runs, reason = backend.can_run(device, dtype)
    if not runs:
        return reason
    try:
        backend.prepare()
    except BackendError as error:
        _logger.warning('%s; another backend is used instead', error)
        return str(error)
    return None


def _first_choice(shape: torch.Size, grid: SharingGrid,
                  weight_grad: bool) -> str:
    """The backend with the least work, before asking whether it can run."""
    reach = [min(grid.kernel_size, 2 * extent - 1) for extent in shape[-2:]]
    # oneDNN's depthwise forward wins as long as little of the kernel meets
    # the map; its weight gradient never does beyond small kernels.
    limit = 7 * 7 if weight_grad else 27 * 27
    return 'dense' if reach[0] * reach[1] <= limit else 'cpp'


def select_backend(name: str | None,
                   device: torch.device,
                   dtype: torch.dtype,
                   shape: torch.Size,
                   grid: SharingGrid,
                   weight_grad: bool = False) -> Backend:
    """The named backend, or the cheapest one that can run.

    Args:
        name (str | None): A key of ``BACKENDS``; None chooses.
        device (torch.device): Where the input is.
        dtype (torch.dtype): The input's dtype.
        shape (torch.Size): The input's ``(N, C, H, W)``.
        grid (SharingGrid): The kernel's cells.
        weight_grad (bool): Choose for the weight's gradient instead of for
            the convolution. Default: False.

    Returns:
        Backend: One whose ``can_run`` says yes.

    Raises:
        ValueError: If there is no backend of that name.
        RuntimeError: If the named backend, or without a name every backend,
            cannot run there; the message says why.
    """
    check_name(name)
    where = f'{dtype} on {device}'
    if name is not None:
        backend = BACKENDS[name]
        runs, reason = backend.can_run(device, dtype)
        if not runs:
            raise RuntimeError(
                f'backend {name!r} cannot run with {where}: {reason}')
        backend.prepare()
        return backend
    first = _first_choice(shape, grid, weight_grad)
    reasons = []
    order = [first, *BACKENDS]
    if device.type == 'cuda':
        order.insert(0, 'triton')
    for candidate in dict.fromkeys(order):
        reason = why_not(BACKENDS[candidate], device, dtype)
        if reason is None:
            return BACKENDS[candidate]
        reasons.append(f'{candidate}: {reason}')
    raise RuntimeError(f'no backend of peripheral_conv2d runs with {where}: '
                       + '; '.join(reasons))


def check_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or the name of a backend."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f'unknown backend {name!r}, expected one of '
                         f'{sorted(BACKENDS)} or None to choose')
