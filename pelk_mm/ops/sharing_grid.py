"""Geometry of the peripheral convolution: which weight covers which cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from .checks import check_integer

#: No feature map needs a larger kernel, and a grid of ones has as many cells.
LARGEST_KERNEL = 2**16 - 1


def _exponential_sizes(
    kernel_size: int, center_radius: int, base: int
) -> tuple[int, ...]:
    """Cell sizes of Eq. 2, the outermost cell cut to end at the border."""
    focus = 2 * center_radius + 1
    if kernel_size < focus:
        raise ValueError(
            f'a kernel of size {kernel_size} has no room for a centre of '
            f'{focus}x{focus} unshared weights (center_radius='
            f'{center_radius}); use center_radius <= '
            f'{(kernel_size - 1) // 2}'
        )
    side: list[int] = []
    left = (kernel_size - focus) // 2
    size = base
    while left > 0:
        side.append(min(size, left))
        left -= side[-1]
        size *= base
    return (*reversed(side), *[1] * focus, *side)


@dataclass(frozen=True, init=False)
class SharingGrid:
    """The cells of a peripheral convolution's kernel.

    The K x K positions of the kernel are cut into k' x k' cells, cell
    ``(a, b)`` being ``sizes[a]`` rows by ``sizes[b]`` columns, and all
    positions of a cell share one weight (Eq. 1 of `PeLK
    <https://arxiv.org/abs/2403.07589>`_). The centre keeps
    ``(2 * center_radius + 1) ** 2`` cells of one position each; outside of it
    the sizes grow as ``base ** distance`` (Eq. 2) and the outermost cell is
    cut so that the sizes add up to K.

    A grid is immutable, hashable and compares by its sizes.

    Args:
        kernel_size (int): K, odd, in pixels of the feature map; at most
            65535.
        center_radius (int): r_c, the number of unshared positions on each
            side of the central one. Default: 2.
        base (int): m, the factor by which cells grow; 1 gives a grid of
            ones, which is an ordinary depthwise convolution. Default: 2.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If ``kernel_size`` is even or smaller than the centre, or
            an argument is out of range.

    Example:
        >>> SharingGrid(31).sizes
        (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)
    """

    sizes: tuple[int, ...]

    def __init__(
        self, kernel_size: int, center_radius: int = 2, base: int = 2
    ) -> None:
        most = LARGEST_KERNEL
        kernel_size = check_integer('kernel_size', kernel_size, 1, most)
        radius = check_integer('center_radius', center_radius, 0, most // 2)
        base = check_integer('base', base, 1)
        if kernel_size % 2 == 0:
            text = f'kernel_size must be odd, got {kernel_size}; use'
            raise ValueError(f'{text} {kernel_size - 1} or {kernel_size + 1}')
        sizes = _exponential_sizes(kernel_size, radius, base)
        object.__setattr__(self, 'sizes', sizes)

    @classmethod
    def from_sizes(cls, sizes: Sequence[int]) -> SharingGrid:
        """Build a grid from its cell sizes, first to last.

        Args:
            sizes (Sequence[int]): k' positive sizes, symmetric, with an odd
                sum.

        Returns:
            SharingGrid: The grid with exactly these cells.

        Raises:
            TypeError: If ``sizes`` is not a sequence of integers.
            ValueError: If it is empty, not symmetric, holds a size below 1 or
                adds up to an even kernel.
        """
        if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
            got = type(sizes).__name__
            raise TypeError(f'sizes must be a sequence of integers, got {got}')
        if not sizes:
            raise ValueError(
                'a sharing grid needs at least one cell, got an empty sequence'
            )
        whole = tuple(
            check_integer(f'sizes[{i}]', size, 1, LARGEST_KERNEL)
            for i, size in enumerate(sizes)
        )
        if sum(whole) > LARGEST_KERNEL:
            text = f'the sizes must add up to {LARGEST_KERNEL} at most, got'
            raise ValueError(f'{text} {sum(whole)}')
        if whole != whole[::-1]:
            raise ValueError(
                'a sharing grid must be symmetric (the same sizes from both '
                f'ends), got {list(whole)}'
            )
        if sum(whole) % 2 == 0:
            text = 'the sizes must add up to an odd kernel size, got'
            raise ValueError(f'{text} {sum(whole)} from {list(whole)}')
        grid = cls.__new__(cls)
        object.__setattr__(grid, 'sizes', whole)
        return grid

    def __repr__(self) -> str:
        return f'SharingGrid.from_sizes({list(self.sizes)})'

    @cached_property
    def kernel_size(self) -> int:
        """K, the number of rows and of columns that the kernel covers."""
        return sum(self.sizes)

    @property
    def num_cells(self) -> int:
        """k', the number of cells along one axis."""
        return len(self.sizes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First kernel row (or column) of every cell, counted from 0."""
        return (0, *accumulate(self.sizes[:-1]))

    @cached_property
    def unshared_radius(self) -> int:
        """Unshared positions on each side of the centre; -1 if it is shared.

        A parallel small kernel of up to ``2 * unshared_radius + 1`` merges
        exactly into the compact weight.
        """
        middle = self.num_cells // 2
        radius = -1
        while radius < middle and self.sizes[middle + radius + 1] == 1:
            radius += 1
        return radius

    @property
    def areas(self) -> Tensor:
        """Positions of every cell, ``(k', k')``, float64 on the CPU."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64, device='cpu')
        return sizes[:, None] * sizes

    def expand(self, weight: Tensor) -> Tensor:
        """Write the compact weight out as the full kernel (Eq. 1).

        Args:
            weight (Tensor): ``(..., k', k')``, any dtype.

        Returns:
            Tensor: ``(..., K, K)``, same dtype and device; differentiable.

        Raises:
            ValueError: If the last two dimensions are not k' x k'.
        """
        self._check_plane('weight', weight, self.num_cells)
        for _ in range(2):
            weight = weight.transpose(-1, -2)
            cells = zip(weight.split(1, -1), self.sizes, strict=True)
            shape = weight.shape[:-1]
            repeated = [cell.expand(*shape, size) for cell, size in cells]
            weight = torch.cat(repeated, -1)
        return weight

    def reduce(self, kernel: Tensor) -> Tensor:
        """Sum a full kernel over every cell: the adjoint of :meth:`expand`.

        Args:
            kernel (Tensor): ``(..., K, K)``, floating point.

        Returns:
            Tensor: ``(..., k', k')``, same dtype and device; differentiable.

        Raises:
            ValueError: If the last two dimensions are not K x K.
        """
        self._check_plane('kernel', kernel, self.kernel_size)
        largest = max(self.sizes)
        missing = [largest - size for size in self.sizes]
        zero = kernel.new_zeros(1)
        # Cells of one size, filled up with zeros, need one sum.
        for _ in range(2):
            kernel = kernel.transpose(-1, -2)
            zeros = zero.expand(*kernel.shape[:-1], sum(missing))
            parts = kernel.split(self.sizes, -1), zeros.split(missing, -1)
            cells = torch.cat([*chain(*zip(*parts, strict=True))], -1)
            kernel = cells.unflatten(-1, (-1, largest)).sum(-1)
        return kernel

    def project(self, kernel: Tensor) -> Tensor:
        """Average a full kernel over every cell.

        This is the compact weight whose expansion is nearest to ``kernel`` in
        the least-squares sense, and exact where ``kernel`` is constant on the
        cells.

        Args:
            kernel (Tensor): ``(..., K, K)``, floating point.

        Returns:
            Tensor: ``(..., k', k')``, same dtype and device; differentiable.

        Raises:
            ValueError: If the last two dimensions are not K x K.
        """
        return self.reduce(kernel) / self.areas.to(kernel)

    @staticmethod
    def _check_plane(name: str, tensor: Tensor, expected: int) -> None:
        if tensor.ndim < 2 or tuple(tensor.shape[-2:]) != (expected, expected):
            text = f'{name} must end in {expected} x {expected}, got shape'
            raise ValueError(f'{text} {tuple(tensor.shape)}')
