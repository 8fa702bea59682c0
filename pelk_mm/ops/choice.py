"""Which backend runs a call."""

from __future__ import annotations

import logging

import torch

from .backends import BACKENDS, Backend, BackendError
from .checks import did_you_mean

_logger = logging.getLogger('pelk_mm')


def order(
    device: torch.device, kernel_size: int, weight_grad: bool
) -> tuple[str, ...]:
    """Every backend, the fastest first, before asking whether it can run.

    Box sums come first: ``cpp`` on CPUs, ``triton`` elsewhere. Then a small
    kernel is written out and a large one transformed. The weight's gradient
    of a written-out kernel is slow on CPUs.
    """
    if device.type == 'cpu':
        first, last = 'cpp', 'triton'
        largest_dense = 3 if weight_grad else 13
    else:
        first, last = 'triton', 'cpp'
        largest_dense = 31
    if kernel_size <= largest_dense:
        return first, 'dense', 'fft', last
    return first, 'fft', 'dense', last


def select_backend(
    name: str | None,
    device: torch.device,
    dtype: torch.dtype,
    kernel_size: int,
    weight_grad: bool = False,
) -> Backend:
    """The named backend, or the first in :func:`order` that runs; prepared.

    None or '' chooses. Raises ValueError for an unknown name, RuntimeError if
    the named backend, or without a name every backend, cannot run there.
    """
    if name:
        backend = named(name)
        reason = backend.why_not(device, dtype)
        if reason is not None:
            text = f'backend {name!r} cannot run with {dtype} on {device}: '
            raise RuntimeError(text + reason) from backend.failure
        backend.prepare()
        return backend
    reasons = []
    for candidate in order(device, kernel_size, weight_grad):
        backend = BACKENDS[candidate]
        reason = get_ready(backend, device, dtype)
        if reason is None:
            return backend
        reasons.append(f'{candidate}: {reason}')
    text = f'no backend of peripheral_conv2d runs with {dtype} on {device}: '
    raise RuntimeError(text + '; '.join(reasons))


def get_ready(
    backend: Backend, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Prepare a backend; None if it runs there, otherwise the reason."""
    reason = backend.why_not(device, dtype)
    if reason is not None:
        return reason
    try:
        backend.prepare()
    except BackendError as error:
        _logger.warning('%s; another backend is used instead', error)
        return str(error)
    return None


def named(name: str) -> Backend:
    """The backend of that name, or ValueError."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(
            f'unknown backend {name!r}, expected one of {sorted(BACKENDS)} '
            f'or None to choose{did_you_mean(name, BACKENDS)}'
        )
    return BACKENDS[name]


def check_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or the name of a backend."""
    if name is not None:
        named(name)
