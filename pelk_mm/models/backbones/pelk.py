"""PeLK: a ConvNeXt-like backbone whose large kernels share weights by cells.

`PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution
<https://arxiv.org/abs/2403.07589>`_, CVPR 2024.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import SharingGrid
from ..archs import ARCHS, OF_ARCH, block_settings
from ..layers import (
    GRN,
    DropPath,
    LayerNorm2d,
    PartialPeripheralConv2d,
    PeripheralConv2d,
    add_residual_branch,
    density,
    make_permanent,
    pointwise_mlp,
    reach_all,
)
from ..openmmlab import MODELS, print_log
from ..utils import (
    checkpoint_keeping_stats,
    initialise,
    prepare_weights,
    pretrained_of,
    warn_unread,
)
from . import pelk_arguments as arguments
from .pelk_conventions import Conventions


class PeLKBlock(nn.Module):
    """Partial peripheral convolution, LayerNorm and a pointwise MLP.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the large kernel.
        drop_path_rate (float): Stochastic depth. Default: 0.
        layer_scale_init_value (float): 0 for no LayerScale. Default: 1e-6.
        use_grn (bool): GRN behind the GELU. Default: False.
        with_cp (bool): Recompute activations going backward. Default: False.
        **conv_cfg: Arguments of
            :class:`~pelk_mm.models.layers.PartialPeripheralConv2d`.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
        with_cp: bool = False,
        **conv_cfg: Any,
    ) -> None:
        super().__init__()
        self.conv = PartialPeripheralConv2d(channels, grid, **conv_cfg)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.grn = GRN(4 * channels) if use_grn else nn.Identity()
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = None
        if layer_scale_init_value > 0:
            scale = torch.full((channels,), float(layer_scale_init_value))
            self.gamma = nn.Parameter(scale)
        self.drop_path = DropPath(drop_path_rate)
        self.with_cp = with_cp

    def forward(self, x: Tensor, pos_sums: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape, laid out channels-last.

        ``pos_sums``, ``(1, k', k')`` or None, are what
        :class:`~pelk_mm.models.layers.PartialPeripheralConv2d` takes.
        """
        if self.with_cp and torch.is_grad_enabled() and self.training:
            return checkpoint_keeping_stats(self, self._forward, x, pos_sums)
        return self._forward(x, pos_sums)

    def _forward(self, x: Tensor, pos_sums: Tensor | None) -> Tensor:
        y = self.norm(self.conv(x, pos_sums).permute(0, 2, 3, 1))
        mlp = self.pointwise_conv1, self.act, self.grn, self.pointwise_conv2
        y = pointwise_mlp(y, mlp)
        return add_residual_branch(
            x, y, self.gamma, self.drop_path, self.conv.large
        )


class PeLKStage(nn.Module):
    """Blocks of one resolution, which share one positional embedding.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the blocks' large kernels.
        rates (Sequence[float]): Stochastic depth of each block.
        pos_embed (bool): Whether to have the kernel-wise positional embedding
            ``(1, K, K)``. Default: True.
        **block_cfg: Arguments of :class:`PeLKBlock`.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        rates: Sequence[float],
        pos_embed: bool = True,
        **block_cfg: Any,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.blocks = nn.ModuleList(
            PeLKBlock(channels, grid, rate, **block_cfg) for rate in rates
        )
        self.pos_embed = None
        if pos_embed:
            size = grid.kernel_size
            self.pos_embed = nn.Parameter(torch.empty(1, size, size))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape, laid out channels-last."""
        pos_sums = self._pos_sums()
        for block in self.blocks:
            x = block(x, pos_sums)
        return x

    def merge(self) -> None:
        """Merge every block's convolution; the embedding ends in biases."""
        make_permanent(self, 'pos_embed')
        pos_sums = self._pos_sums()
        for conv in _parts(self, PartialPeripheralConv2d):
            conv.merge(pos_sums)
        self.pos_embed = None

    def _pos_sums(self) -> Tensor | None:
        if self.pos_embed is None:
            return None
        return self.grid.reduce(self.pos_embed)


@MODELS.register_module()
class PeLK(Conventions, nn.Module):
    """PeLK backbone for classification and dense prediction.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'tiny-101'``,
            ``'base-101'``, ``'tiny-151'``; ``'convnext-tiny'`` and
            ``'convnext-tiny-101'``, from atto to huge, for the weights of a
            ConvNeXt; or a dict with ``depths``, ``channels`` and
            ``kernel_sizes`` (four integers each) and optionally
            ``center_radius`` (default 2). Default: ``'tiny'``.
        in_channels (int): Channels of the image. Default: 3.
        small_kernel (int, optional): Size of the depthwise branch that is
            parallel to each large kernel in training, each branch with its
            own norm. None leaves out the branch and both norms. Default: 5.
        conv_ratio (float): Share of channels convolved. Default: 0.375.
        pos_embed (bool): Positional embedding per stage. Default: True. For
            a ``'convnext-'`` arch the defaults are None, 1 and False.
        use_grn (bool): GRN in the blocks, for the weights of a ConvNeXt V2
            (which has no LayerScale). Default: False.
        norm_cfg (dict, optional): Norm of the convolution branches, a
            BatchNorm of any kind. Default: None, ``dict(type='BN')``.
        drop_path_rate (float): Stochastic depth of the last block, below 1;
            the rate grows linearly from 0 at the first. Default: 0.
        layer_scale_init_value (float): 0 for no LayerScale. Default: 1e-6.
        out_indices (int | Sequence[int]): Stages whose output is returned, -1
            for the last; those behind them are not built. Default: -1.
        frozen_stages (int): How many of the first stages, with the stem and
            downsampling before them, stay fixed, in eval mode; 0 or -1 for
            none. Default: 0.
        gap_before_final_norm (bool, optional): Return normalised global
            averages, for classification; False returns normalised maps.
            Default: None, averages where the last stage alone is returned.
        with_cp (bool): Recompute blocks in the backward pass. Default: False.
        deploy (bool): Build the merged model, for weights that were saved
            after :meth:`switch_to_deploy`. Default: False.
        backend (str, optional): Backend of every peripheral convolution, see
            :func:`pelk_mm.ops.peripheral_conv2d`. Default: None, the fastest.
        init_cfg (dict | list[dict], optional): mmengine's, for
            :meth:`init_weights`, which a Runner calls. ``Pretrained`` takes a
            ConvNeXt too, reports what fits, and raises if none does. Default:
            None, for what is drawn here: truncated normal of std 0.02.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range; the message says which.

    Example:
        >>> import torch
        >>> model = PeLK(out_indices=range(4))
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = ARCHS
    num_stages = arguments.NUM_STAGES
    stem_stride = arguments.STEM_STRIDE

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        small_kernel: int | str | None = OF_ARCH,
        conv_ratio: float | str = OF_ARCH,
        pos_embed: bool | str = OF_ARCH,
        use_grn: bool = False,
        norm_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = 0,
        gap_before_final_norm: bool | None = None,
        with_cp: bool = False,
        deploy: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__()
        self.init_cfg = arguments.check_init_cfg(init_cfg)
        self.is_init = False
        self._unread = pretrained_of(self.init_cfg)
        settings = arguments.check_arch(arch, self.arch_settings)
        self.arch = deepcopy(arch)
        self.depths = settings['depths']
        self.channels = settings['channels']
        self.kernel_sizes = settings['kernel_sizes']
        self.center_radius = settings['center_radius']
        self.in_channels = arguments.check_in_channels(in_channels)
        self.out_indices = arguments.check_out_indices(out_indices)
        self.drop_path_rate = drop_path_rate
        self.frozen_stages = arguments.check_frozen_stages(frozen_stages)
        arguments.check_rate_and_scale(drop_path_rate, layer_scale_init_value)
        if gap_before_final_norm is None:
            gap_before_final_norm = self.out_indices == (self.num_stages - 1,)
        given = dict(conv_ratio=conv_ratio, small_kernel=small_kernel)
        block = block_settings(arch, **given, pos_embed=pos_embed)
        arguments.check_bools(
            pos_embed=block['pos_embed'],
            use_grn=use_grn,
            gap_before_final_norm=gap_before_final_norm,
            with_cp=with_cp,
            deploy=deploy,
        )
        self.gap_before_final_norm = gap_before_final_norm
        self.deploy = deploy

        stage_cfg: dict[str, Any] = dict(
            block,
            pos_embed=block['pos_embed'] and not deploy,
            layer_scale_init_value=layer_scale_init_value,
            use_grn=use_grn,
            with_cp=with_cp,
            norm_cfg=norm_cfg,
            deploy=deploy,
            backend=backend,
        )
        self._stage_cfg = stage_cfg | block
        widths = (self.in_channels, *self.channels)
        last_block = max(sum(self.depths) - 1, 1)
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i in range(max(self.out_indices) + 1):
            before, width = widths[i : i + 2]
            stride = 2 if i else self.stem_stride
            conv = nn.Conv2d(before, width, stride, stride)
            norm = LayerNorm2d(before if i else width, eps=1e-6)
            layers = (norm, conv) if i else (conv, norm)
            self.downsample_layers.append(nn.Sequential(*layers))
            grid = SharingGrid(self.kernel_sizes[i], self.center_radius)
            first = sum(self.depths[:i])
            blocks = range(first, first + self.depths[i])
            rates = [drop_path_rate * block / last_block for block in blocks]
            stage = PeLKStage(width, grid, rates, **stage_cfg)
            self.stages.append(stage)
        out_norm = nn.LayerNorm if gap_before_final_norm else LayerNorm2d
        for i in self.out_indices:
            self.add_module(f'norm{i}', out_norm(self.channels[i], eps=1e-6))
        # As ConvNeXt's layers start; the other ones do by themselves.
        for layer in _parts(self, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.train()  # freezes, too

    @classmethod
    def out_channels(cls, arch: str | dict = 'tiny') -> list[int]:
        """Channels of each stage's output, for a neck's or a head's config.

        Args:
            arch (str | dict): As for the constructor. Default: ``'tiny'``.

        Returns:
            list[int]: One for each of the four stages.
        """
        settings = arguments.check_arch(arch, cls.arch_settings)
        return list(settings['channels'])

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the output of the last stage that is built, as timm does.

        Args:
            x (Tensor): Images, see :meth:`forward`.

        Returns:
            Tensor: ``(N, num_features, H / s, W / s)``, neither averaged nor
            normalised, with the stride s of the stage; contiguous.
        """
        self._check(x)
        for downsample, stage in zip(
            self.downsample_layers, self.stages, strict=True
        ):
            x = stage(downsample(x))
        return x.contiguous()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of the stages in ``out_indices``.

        Args:
            x (Tensor): Images ``(N, in_channels, H, W)``, H and W at least
                the stride of the last stage in use (32 for all four).

        Returns:
            tuple[Tensor]: ``(N, C_i)`` each with ``gap_before_final_norm``,
            otherwise ``(N, C_i, H / s_i, W / s_i)`` with strides s of 4, 8,
            16 and 32, contiguous.

        Raises:
            ValueError: If images have other channels or are too small.
        """
        self._check(x)
        norms = {i: getattr(self, f'norm{i}') for i in self.out_indices}
        outputs = {}
        for i, stage in enumerate(self.stages):
            x = stage(self.downsample_layers[i](x))
            if i in norms:
                y = x.mean((2, 3)) if self.gap_before_final_norm else x
                y = norms[i](y)
                y = reach_all(y, norms.values()) if self.training else y
                # Inside, maps are channels-last. Outside they must not be:
                # mmcv's RoIAlign takes the memory of such a map, or of what
                # a neck makes of it, for channels-first without a word.
                outputs[i] = y.contiguous()
        return tuple(outputs[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> PeLK:
        """Set the mode; frozen stages stay fixed and in eval mode."""
        super().train(mode)
        frozen = slice(self.frozen_stages)
        for module in (*self.downsample_layers[frozen], *self.stages[frozen]):
            module.eval()
            module.requires_grad_(False)
        return self

    def switch_to_deploy(self) -> None:
        """Merge norms, small kernels and positional embeddings.

        Exact in eval mode. The kernels stay compact, so the merged model runs
        on the same backends. It cannot go back; weights saved from it load
        into a model built with ``deploy=True``. A small kernel fills zeros
        that a sparse large kernel has in its centre; by how much is logged.
        What torch.nn.utils derives weights by (pruning, weight_norm,
        spectral_norm, parametrizations) becomes permanent. A TypeError names
        what was put in a convolution's or norm's place and cannot be merged.
        """
        if self.deploy:
            return
        convs = _parts(self, PeripheralConv2d)
        for conv in convs:
            make_permanent(conv, 'weight')
        before = density(convs)
        for stage in _parts(self, PeLKStage):
            stage.merge()
        self.deploy = True
        after = density(_parts(self, PeripheralConv2d))
        if after != before:
            print_log(
                f'PeLK: merging the small kernels takes the large ones from '
                f'{before:.2%} to {after:.2%} non-zero weights',
                logger='current',
            )

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The grouping of ConvNeXt's recipes: the stem is 0, the first two
        stages are one layer each, the third is cut into layers of three
        blocks, the fourth is the last layer of the backbone; whatever
        follows (output norms, neck, heads) is one further.

        Args:
            param_name (str): Name of the parameter, prefix included.
            prefix (str): Such as ``'backbone.'``. Default: ``''``.

        Returns:
            tuple[int, int]: The depth, and the number of depths.
        """
        last = 3 + ceil(self.depths[2] / 3)
        own = r'(downsample_layers|stages)\.(\d+)\.(?:blocks\.(\d+)\.)?'
        match = re.match(re.escape(prefix) + own, param_name)
        if match is None:
            return last + 1, last + 2
        stage, block = int(match[2]), int(match[3] or 0)
        if match[1] == 'downsample_layers' and stage == 0:
            return 0, last + 2
        return (1, 2, 3 + block // 3, last)[stage], last + 2

    def init_weights(self) -> None:
        """Do what ``init_cfg`` says; without one, nothing is left to do."""
        initialise(self)
        self.is_init = True

    def _check(self, x: Tensor) -> None:
        arguments.check_images(x, self.in_channels, len(self.stages))
        if self._unread is not None and not torch.compiler.is_compiling():
            warn_unread(self._unread)
            self._unread = None

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        self._unread = None
        prepare_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _parts(module: nn.Module, kind: type | tuple[type, ...]) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, kind)]
