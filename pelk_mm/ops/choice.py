"""Which backend runs a call."""

from __future__ import annotations

import logging

import torch

from .backends import BACKENDS, Backend, BackendError
from .checks import did_you_mean
from .cost_model import cheapest_first
from .sharing_grid import SharingGrid

_logger = logging.getLogger('pelk_mm')


def why_not(
    backend: Backend, device: torch.device, dtype: torch.dtype
) -> str | None:
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


def _order(
    device: torch.device,
    shape: torch.Size,
    grid: SharingGrid,
    weight_grad: bool,
    channels_last: bool,
) -> list[str]:
    """Every backend, the fastest first, before asking whether it can run."""
    if device.type == 'cpu':
        first = cheapest_first(tuple(shape), grid, weight_grad, channels_last)
    else:
        first = ('triton', 'fft' if grid.kernel_size > 31 else 'dense')
    return list(dict.fromkeys((*first, *BACKENDS)))


def select_backend(
    name: str | None,
    device: torch.device,
    dtype: torch.dtype,
    shape: torch.Size,
    grid: SharingGrid,
    weight_grad: bool = False,
    channels_last: bool = False,
) -> Backend:
    """The named backend, or the cheapest one that can run.

    Args:
        name (str | None): A key of ``BACKENDS``; None chooses.
        device (torch.device): Where the input is.
        dtype (torch.dtype): The input's dtype.
        shape (torch.Size): The input's ``(N, C, H, W)``.
        grid (SharingGrid): The kernel's cells.
        weight_grad (bool): Choose for the weight's gradient instead of for
            the convolution. Default: False.
        channels_last (bool): Whether the input is laid out that way.
            Default: False.

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
                f'backend {name!r} cannot run with {where}: {reason}'
            ) from backend.failure
        backend.prepare()
        return backend
    reasons = []
    for candidate in _order(device, shape, grid, weight_grad, channels_last):
        reason = why_not(BACKENDS[candidate], device, dtype)
        if reason is None:
            return BACKENDS[candidate]
        reasons.append(f'{candidate}: {reason}')
    raise RuntimeError(
        f'no backend of peripheral_conv2d runs with {where}: '
        + '; '.join(reasons)
    )


def check_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or the name of a backend."""
    if name is not None and (
        not isinstance(name, str) or name not in BACKENDS
    ):
        raise ValueError(
            f'unknown backend {name!r}, expected one of '
            f'{sorted(BACKENDS)} or None to choose'
            f'{did_you_mean(name, BACKENDS)}'
        )
