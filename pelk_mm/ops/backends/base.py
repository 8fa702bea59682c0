"""What a backend of the peripheral convolution has to offer."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid

_TELLING = re.compile(r'error:|not found|denied|No such file|No space')


class BackendError(RuntimeError):
    """A backend cannot be made to run here; the message says why."""


class Backend(ABC):
    """One way to compute a peripheral convolution and its weight gradient.

    The gradient to the input needs no method of its own: the grid is
    symmetric, so it is the convolution of the output's gradient with the
    flipped weight.

    A backend is prepared before its first call. Arguments arrive checked:
    ``input`` and ``grad_output`` are ``(N, C, H, W)`` with any strides, none
    empty, and share device and dtype with ``weight``. Results may have any
    strides; ``layout`` is the one to which maps are brought afterwards.
    """

    name: ClassVar[str]
    #: What :meth:`build` failed with in this process.
    failure: Exception | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = False

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if this backend runs there, otherwise the reason.

        Never raises and never builds anything: what has yet to be built is
        taken to succeed until :meth:`prepare` has failed.
        """
        reason = self.refuses(device, dtype)
        if reason is None and self.failure is not None:
            reason = self._failed()
        return reason

    def prepare(self) -> None:
        """Build what the backend needs, once in this process.

        Raises BackendError if that fails or has failed, and ``why_not`` gives
        the reason from then on.
        """
        if self._ready:
            return
        with self._lock:
            if not self._ready and self.failure is None:
                try:
                    self.build()
                    self._ready = True
                # Compilers, drivers and file systems fail in many ways, none
                # of which should stop a training that has other backends.
                except Exception as error:
                    self.failure = error
        if self.failure is not None:
            raise BackendError(self._failed()) from self.failure

    def _failed(self) -> str:
        lines = str(self.failure).strip().splitlines() or ['no message']
        # A failed build repeats the compiler's commands, which say little.
        telling = [line for line in lines[1:] if _TELLING.search(line)]
        why = f'{type(self.failure).__name__}: {(telling or lines)[0]}'
        return f'backend {self.name!r} could not be built: {why}'

    @abstractmethod
    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why a backend that could be built does not run there, or None."""

    def build(self) -> None:  # noqa: B027 (most have nothing to build)
        """Make ready what the methods below need; may raise anything."""

    @abstractmethod
    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        """Convolve ``input`` with ``weight`` ``(C, 1, k', k')``."""

    @abstractmethod
    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        """Gradient ``(C, 1, k', k')`` of the weight."""

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the input and of the weight, in one go if possible."""
        return (
            self.forward(grad_output, weight.flip(2, 3), None, grid, layout),
            self.weight_grad(input, grad_output, grid),
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(input: Tensor) -> torch.memory_format:
    """The layout of the result; a channel slice keeps channels-last."""
    slice_of_channels = input.stride(1) == 1 and input.shape[1] > 1
    if not input.is_contiguous() and (
        slice_of_channels
        or input.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format
