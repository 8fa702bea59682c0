"""A training step of two branches and their BatchNorms in few launches.

What ``norm_1(large(x)) + norm_2(small(x)) + constant`` on the first channels,
joined with the others, is made of: nine kernels forward and some fifteen
backward, in place of fifty. The branches stay in planar order between them,
and the small kernel is convolved with the maps of the large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from ..peripheral_conv import peripheral_conv2d
from ..sharing_grid import SharingGrid
from .triton import join_groups, on_device
from .triton_launch import (
    Group,
    Launch,
    View,
    interleave_tiles,
    kernels,
    make_work,
    maps_launch,
)
from .triton_plan import Tiles, copy_plan

# The lines of a channel are split until about this many programs share all.
_PROGRAMS = 1024
_BLOCK, _GRAD_BLOCK = 1024, 4096


class Branches(NamedTuple):
    """What the step depends on beside tensors."""

    grid: SharingGrid  # of the large kernel
    small_grid: SharingGrid  # of ones
    dtype: torch.dtype  # of the convolutions
    out_dtype: torch.dtype
    eps: tuple[float, ...]
    momentum: tuple[float, ...]


def join_branches(
    x: Tensor,
    large: Tensor,
    small: Tensor,
    norms: Sequence[_BatchNorm],
    pos_sums: Tensor | None,
    grid: SharingGrid,
    small_grid: SharingGrid,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> Tensor:
    """Convolve the first channels by two kernels, normalise, and add up.

    Args:
        x (Tensor): ``(N, C, H, W)`` on a GPU, its first G channels
            channels-last.
        large (Tensor): Weight ``(G, 1, k', k')``, G at most C.
        small (Tensor): Weight ``(G, 1, s, s)``.
        norms (Sequence[_BatchNorm]): Of either branch. The batch's
            statistics are taken, and the running ones updated.
        pos_sums (Tensor, optional): ``(1, k', k')``; the sum of its products
            with the large weight is added.
        grid (SharingGrid): Of the large kernel.
        small_grid (SharingGrid): Of the small one, of ones.
        dtype (torch.dtype): To convolve in.
        out_dtype (torch.dtype): Of the result.

    Returns:
        Tensor: ``(N, C, H, W)``, channels-last.
    """
    branches = Branches(
        grid,
        small_grid,
        dtype,
        out_dtype,
        tuple(float(norm.eps) for norm in norms),
        tuple(float(norm.momentum or 0) for norm in norms),
    )
    buffers = [
        (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        for norm in norms
    ]
    link = _Link.apply(x) if torch.is_grad_enabled() else None
    affine = [value for norm in norms for value in (norm.weight, norm.bias)]
    parameters = large, small, *affine, pos_sums
    return _Join.apply(branches, buffers, x, link, *parameters)


class _Link(Function):
    """Zeros in the shape of a tensor, in the memory of one number.

    A second derivative goes through them to ``x``, which need not be kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # A first derivative has none for it: zeros would be added to x's.
        ctx.set_materialize_grads(False)
        return _zero(x.dtype, x.device).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        return grad


class _Join(Function):
    @staticmethod
    def forward(
        ctx: Any,
        branches: Branches,
        buffers: Sequence[tuple[Any, ...]],
        x: Tensor,
        link: Tensor | None,
        large: Tensor,
        small: Tensor,
        gamma_1: Tensor,
        beta_1: Tensor,
        gamma_2: Tensor,
        beta_2: Tensor,
        pos_sums: Tensor | None,
    ) -> Tensor:
        one, two = buffers
        norms = gamma_1, beta_1, *one, gamma_2, beta_2, *two
        with on_device(x.device):
            step = make_step(x.shape, large.shape[0], x.device, branches)
            planes = step.copy(x)
            results = step.convolve(planes, large, small)
            stats = step.normalise(results, large, pos_sums, norms)
            output = torch.empty_like(
                x, dtype=branches.out_dtype, memory_format=torch.channels_last
            )
            step.join(results, stats, x, output)
        ctx.branches, ctx.dtype = branches, x.dtype
        ctx.save_for_backward(
            planes,
            results,
            stats,
            link,
            large,
            small,
            gamma_1,
            beta_1,
            gamma_2,
            beta_2,
            pos_sums,
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        planes, results, stats, link, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[2], *ctx.needs_input_grad[4:]
            inputs = _gradients_again(
                grad, planes, link, parameters, needed, ctx.branches
            )
            return None, None, inputs[0], None, *inputs[1:]
        large, small, *_, pos_sums = parameters
        with on_device(grad.device):
            step = make_step(
                grad.shape, large.shape[0], grad.device, ctx.branches
            )
            of_branches, sums = step.normalise_back(
                step.copy(grad), results, stats
            )
            back, of_large, of_small = step.convolve_back(
                of_branches, planes, large, small
            )
            of_x = torch.empty_like(
                grad, dtype=ctx.dtype, memory_format=torch.channels_last
            )
            step.join(back, step.plain, grad, of_x)
        of_constant, of_pos = sums[0], None
        if pos_sums is not None:
            of_large.addcmul_(of_constant[:, None, None, None], pos_sums)
            of_pos = of_constant @ large.flatten(1).float()
            of_pos = of_pos.view_as(pos_sums)
        of_norms = sums[1], of_constant, sums[2], of_constant
        grads = (of_large, of_small, *of_norms, of_pos)
        like = (
            None if grad is None else grad.to(parameter.dtype)
            for grad, parameter in zip(grads, parameters, strict=True)
        )
        return None, None, of_x, None, *like


@lru_cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def _gradients_again(
    grad: Tensor,
    planes: Tensor,
    link: Tensor,
    parameters: list[Tensor],
    needed: tuple[bool, ...],
    branches: Branches,
) -> tuple[Tensor | None, ...]:
    """The gradients by operators that torch differentiates once more."""
    large, small, gamma_1, beta_1, gamma_2, beta_2, pos_sums = parameters
    count, dtype = large.shape[0], branches.dtype
    values = planes[0, ..., : grad.shape[3]].transpose(0, 1)
    head = link[:, :count].to(dtype) + values
    size = small.shape[-1] // 2
    y = _normalised(
        peripheral_conv2d(head, large.to(dtype), branches.grid),
        gamma_1,
        beta_1,
        branches.eps[0],
    ) + _normalised(
        F.conv2d(head, small.to(dtype), padding=size, groups=count),
        gamma_2,
        beta_2,
        branches.eps[1],
    )
    if pos_sums is not None:
        y = y + (large * pos_sums).sum((1, 2, 3))[:, None, None]
    y = torch.cat([y.to(branches.out_dtype), link[:, count:]], 1)
    inputs = link, *parameters
    wanted = [
        tensor for tensor, one in zip(inputs, needed, strict=True) if one
    ]
    grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(grads) if one else None for one in needed)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


class Step:
    """The launches for maps of a size."""

    def __init__(
        self,
        shape: torch.Size,
        count: int,
        device: torch.device,
        branches: Branches,
    ) -> None:
        batch, _, height, width = shape
        self.count, self.device, self.branches = count, device, branches
        self.shape = batch, count, height, width
        dtype = branches.dtype
        self.lines = batch * height
        size = self.lines, count, width, branches.grid.kernel_size
        tiles = Tiles.forward(*size, narrow=dtype.itemsize < 4)
        self.padded = tiles.pad(width)
        # One channel behind the other, each (N, H, padded).
        plane = self.lines * self.padded
        strides = height * self.padded, plane, self.padded, 1
        view = View(self.shape, strides, dtype, device, 0)
        self.large = make_work(view, branches.grid, None, False)
        small = view, branches.small_grid, None, False, tiles
        self.small = make_work(*small, self.large.top)
        # Of a gradient there is a map of its own, without rows on top.
        self.small_back = make_work(*small)
        self.groups = [
            (
                group,
                Group(self.small, group.channels),
                Group(self.small_back, group.channels),
            )
            for group in self.large.groups
        ]
        most = kernels().MAX_SPLITS
        self.splits = min(-(-_PROGRAMS // count), most, self.lines)
        self.numbers = (
            count,
            width,
            self.padded,
            self.lines,
            self.splits,
            -(-self.lines // self.splits),
        )
        reduced = (self.splits, count), *self.numbers
        self._moments = Launch('moments_kernel', *reduced, BLOCK=_BLOCK)
        self._sums = Launch('norm_sums_kernel', *reduced, BLOCK=_BLOCK)
        # Scales and shift that change nothing.
        self.plain = self._floats(3, count).fill_(1)
        self.plain[2] = 0
        self._norms: dict[tuple, Launch] = {}
        self._norm_grad = Launch(
            'norm_grad_kernel',
            (-(-plane // _GRAD_BLOCK), count),
            *self.numbers,
            BLOCK=_GRAD_BLOCK,
            num_warps=8,
        )

    def planes(self, count: int) -> Tensor:
        """``(count, G, N, H, padded)``."""
        batch, channels, height, _ = self.shape
        shape = count, channels, batch, height, self.padded
        return torch.empty(
            shape, dtype=self.branches.dtype, device=self.device
        )

    def copy(self, x: Tensor) -> Tensor:
        """The first channels of ``(N, C, H, W)``, ``(1, G, N, H, padded)``."""
        head = x[:, : self.count]
        planes = self.planes(1)
        launch = copy_launch(View.of(head), self.padded, planes.dtype)
        launch(head, planes)
        return planes

    def convolve(self, planes: Tensor, large: Tensor, small: Tensor) -> Tensor:
        """Both convolutions, ``(2, G, N, H, padded)``."""
        results = self.planes(2)
        head, one, two = map(_as_images, (planes[0], *results))
        rows = self.large.write_rows(large)
        small_rows = self.small.write_rows(small)
        for group, small_group, _ in self.groups:
            maps = group.fill(head)
            group.convolve(maps, rows, None, one)
            small_group.convolve(maps, small_rows, None, two)
        return results

    def convolve_back(
        self, grads: Tensor, planes: Tensor, large: Tensor, small: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to the input of each, like the results, and the weights.

        The latter in float32.
        """
        results = self.planes(2)
        grad, one, two = map(_as_images, (grads[0], *results))
        rows = self.large.write_rows(large, flipped=True)
        small_rows = self.small_back.write_rows(small, flipped=True)
        of_large, of_small = [], []
        for group, _, small_group in self.groups:
            own, head = grads[1, group.channels], planes[0, group.channels]
            maps = group.fill(grad)
            group.convolve(maps, rows, None, one)
            small_group.convolve(own, small_rows, None, two)
            of_large.append(group.correlate(maps, head))
            of_small.append(small_group.correlate(own, head))
        return results, join_groups(of_large), join_groups(of_small)

    def normalise(
        self,
        results: Tensor,
        large: Tensor,
        pos_sums: Tensor | None,
        norms: tuple[Tensor, ...],
    ) -> Tensor:
        """``stats``, as the kernels describe them; updates the buffers."""
        partial = self._floats(self.count, self.splits, 4)
        stats = self._floats(7, self.count)
        self._moments(results, partial)
        operands = large.contiguous(), pos_sums, *norms
        kinds = tuple(value is not None and value.dtype for value in operands)
        launch = self._norms.get(kinds)
        if launch is None:
            (eps_1, eps_2), (momentum_1, momentum_2) = self.branches[-2:]
            launch = self._norms[kinds] = Launch(
                'norm_kernel',
                (self.count,),
                *self.numbers,
                large[0].numel(),
                eps_1,
                momentum_1,
                eps_2,
                momentum_2,
                HAS_POS=pos_sums is not None,
                BLOCK=256,
                num_warps=1,
            )
        launch(partial, stats, *operands)
        return stats

    def normalise_back(
        self, grad: Tensor, results: Tensor, stats: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the branches, and ``sums`` as the kernels say."""
        partial = self._floats(self.count, self.splits, 3)
        sums = self._floats(3, self.count)
        grads = self.planes(2)
        self._sums(grad, results, stats, partial)
        self._norm_grad(grad, results, stats, partial, grads, sums)
        return grads, sums

    def join(
        self, results: Tensor, stats: Tensor, rest: Tensor, output: Tensor
    ) -> None:
        """Write the sum of the branches, and the channels behind them."""
        views = View.of(rest), View.of(output)
        launch = join_launch(*views, self.count, self.padded, results.dtype)
        launch(results, stats, rest, output)

    def _floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)


#: A Step for every size, kept.
make_step = lru_cache(maxsize=512)(Step)


@lru_cache(maxsize=1024)
def copy_launch(view: View, padded: int, dtype: torch.dtype) -> Launch:
    """For ``maps_kernel``, without a box, into planes of a dtype."""
    return maps_launch(view, copy_plan(), padded)[0]


@lru_cache(maxsize=1024)
def join_launch(
    rest: View, output: View, count: int, padded: int, dtype: torch.dtype
) -> Launch:
    """For ``join_kernel``, of branches of a dtype."""
    grid, constants = interleave_tiles(output, padded)
    if constants['RUN_C'] < 4:
        # Two at a time gain little for one more kernel to compile.
        constants['RUN_C'] = 1
    numbers = *output.shape, *output.strides, *rest.strides, padded
    return Launch('join_kernel', grid, count, *numbers, **constants)


def _as_images(planes: Tensor) -> Tensor:
    """``(C, N, H, padded)`` as ``(N, C, H, padded)``."""
    return planes.transpose(0, 1)
