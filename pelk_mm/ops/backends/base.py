"""What a backend of the peripheral convolution has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid


class BackendError(RuntimeError):
    """A backend cannot be made to run here; the message says why."""


class Backend(ABC):
    """One way to compute a peripheral convolution and its weight gradient.

    The gradient to the input needs no method of its own: the grid is
    symmetric, so it is the convolution of the output's gradient with the
    flipped weight.

    Arguments arrive checked: ``input`` and ``grad_output`` are
    ``(N, C, H, W)`` with any strides, N may be 0, and share device and dtype
    with ``weight``. Results may have any strides.
    """

    name: ClassVar[str]
    #: What :meth:`prepare` failed with in this process.
    failure: Exception | None = None

    @abstractmethod
    def can_run(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[bool, str]:
        """Whether this backend runs there, and the reason if it does not.

        Never raises and never builds anything: what has yet to be built is
        taken to succeed until :meth:`prepare` has failed.
        """

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Build what the backend needs; at once where that is done.

        Raises:
            BackendError: If it cannot be built. Stays so in this process, and
                ``can_run`` gives the reason from then on.
        """

    @abstractmethod
    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
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
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the input and of the weight, in one go if possible."""
        return (
            self.forward(grad_output, weight.flip(2, 3), None, grid),
            self.weight_grad(input, grad_output, grid),
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(input: Tensor) -> torch.memory_format:
    """The layout of the result; a channel slice keeps channels-last."""
    if input.is_contiguous():
        return torch.contiguous_format
    if input.stride(1) == 1 and input.shape[1] > 1:
        return torch.channels_last
    if input.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
