"""PeLK: a ConvNeXt-like backbone whose large kernels share weights by cells.

`PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution
<https://arxiv.org/abs/2403.07589>`_, CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import ceil
from numbers import Integral

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule, initialize
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...ops import SharingGrid
from ...ops.checks import check_bool, check_integer, check_number, did_you_mean
from ...ops.sharing_grid import LARGEST_KERNEL
from ..layers import LayerNorm2d, PartialPeripheralConv2d
from ..utils import (
    check_state_dict,
    checkpoint_keeping_stats,
    is_pretrained,
    load_pretrained,
    pretrained_of,
)

#: Beyond what any machine holds: what is larger is a slip of the keyboard.
_MOST_BLOCKS, _MOST_CHANNELS, _LARGEST_SCALE = 10_000, 1_000_000, 1e6


class PeLKBlock(nn.Module):
    """Partial peripheral convolution, LayerNorm and a pointwise MLP.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the large kernel.
        drop_path_rate (float): Stochastic depth. Default: 0.
        layer_scale_init_value (float): Start of LayerScale; 0 leaves it out.
            Default: 1e-6.
        with_cp (bool): Recompute the block in the backward pass instead of
            keeping its activations. Default: False.
        **conv_cfg: Arguments of
            :class:`~pelk_mm.models.layers.PartialPeripheralConv2d`.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        with_cp: bool = False,
        **conv_cfg,
    ) -> None:
        super().__init__()
        self.conv = PartialPeripheralConv2d(channels, grid, **conv_cfg)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = (
            nn.Parameter(
                torch.full((channels,), float(layer_scale_init_value))
            )
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path_rate)
        self.with_cp = with_cp

    def forward(self, x: Tensor, pos_sums: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape, laid out channels-last.

        Args:
            x (Tensor): ``(N, C, H, W)``.
            pos_sums (Tensor, optional): ``(1, k', k')``, see
                :class:`~pelk_mm.models.layers.PartialPeripheralConv2d`.
                Default: None.
        """
        if self.with_cp and torch.is_grad_enabled() and self.training:
            return checkpoint_keeping_stats(self, self._forward, x, pos_sums)
        return self._forward(x, pos_sums)

    def _forward(self, x: Tensor, pos_sums: Tensor | None) -> Tensor:
        y = self.conv(x, pos_sums).permute(0, 2, 3, 1)
        y = self.pointwise_conv2(self.act(self.pointwise_conv1(self.norm(y))))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class PeLKStage(nn.Module):
    """Blocks of one resolution, which share one positional embedding.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the blocks' large kernels.
        drop_path_rates (Sequence[float]): One a block.
        pos_embed (bool): Whether to have the kernel-wise positional embedding
            ``(1, K, K)``. Default: True.
        **block_cfg: Arguments of :class:`PeLKBlock`.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        drop_path_rates: Sequence[float],
        pos_embed: bool = True,
        **block_cfg,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.blocks = nn.ModuleList(
            PeLKBlock(channels, grid, rate, **block_cfg)
            for rate in drop_path_rates
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
        pos_sums = self._pos_sums()
        for block in self.blocks:
            block.conv.merge(pos_sums)
        self.pos_embed = None

    def _pos_sums(self) -> Tensor | None:
        return (
            None
            if self.pos_embed is None
            else self.grid.reduce(self.pos_embed)
        )


@MODELS.register_module()
class PeLK(BaseModule):
    """PeLK backbone for classification and dense prediction.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'tiny-101'``,
            ``'base-101'`` or ``'tiny-151'``, or a dict with ``depths``,
            ``channels`` and ``kernel_sizes`` (four integers each) and
            optionally ``center_radius`` (default 2). Default: ``'tiny'``.
        in_channels (int): Channels of the image. Default: 3.
        small_kernel (int, optional): Size of the depthwise branch that is
            parallel to each large kernel in training, each branch with its
            own norm. None leaves out the branch and both norms. Default: 5.
        conv_ratio (float): Share of the channels that are convolved.
            Default: 0.375.
        pos_embed (bool): Kernel-wise positional embedding, one per stage.
            Default: True.
        norm_cfg (dict, optional): Norm of the convolution branches, a
            BatchNorm of any kind. Default: None, ``dict(type='BN')``.
        drop_path_rate (float): Stochastic depth of the last block, below 1;
            the rate grows linearly from 0 at the first. Default: 0.
        layer_scale_init_value (float): Start of LayerScale; 0 leaves it out.
            Default: 1e-6.
        out_indices (int | Sequence[int]): Stages whose output is returned;
            -1 is the last. Stages behind the last one asked for are not
            built. Default: -1.
        frozen_stages (int): The first stages, each with the stem or
            downsampling before it, that are kept fixed in eval mode.
            Default: 0.
        gap_before_final_norm (bool): Return globally averaged, normalised
            vectors, for classification. False returns normalised maps.
            Default: True.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
            Default: False.
        deploy (bool): Build the merged form, for weights that were saved
            after :meth:`switch_to_deploy`. Default: False.
        backend (str, optional): Backend of every peripheral convolution, see
            :func:`pelk_mm.ops.peripheral_conv2d`. Default: None, the fastest.
        init_cfg (dict | list[dict], optional): mmengine's; ``Pretrained``
            loads only what fits, reports it, and raises if nothing does.
            Default: truncated normal of std 0.02, as ConvNeXt.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range; the message says which.

    Example:
        >>> import torch
        >>> model = PeLK('tiny', out_indices=(0, 1, 2, 3),
        ...              gap_before_final_norm=False)
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 64))]
        [(1, 124, 16, 16), (1, 249, 8, 8), (1, 499, 4, 4), (1, 998, 2, 2)]
    """

    arch_settings = {
        'tiny': dict(
            depths=(3, 3, 9, 3),
            channels=(124, 249, 499, 998),
            kernel_sizes=(51, 49, 47, 13),
            center_radius=2,
        ),
        'small': dict(
            depths=(3, 3, 27, 3),
            channels=(124, 249, 499, 998),
            kernel_sizes=(51, 49, 47, 13),
            center_radius=2,
        ),
        'base': dict(
            depths=(3, 3, 27, 3),
            channels=(166, 332, 665, 1331),
            kernel_sizes=(51, 49, 47, 13),
            center_radius=2,
        ),
        'tiny-101': dict(
            depths=(3, 3, 9, 3),
            channels=(124, 249, 499, 998),
            kernel_sizes=(101, 69, 67, 13),
            center_radius=3,
        ),
        'base-101': dict(
            depths=(3, 3, 27, 3),
            channels=(166, 332, 665, 1331),
            kernel_sizes=(101, 69, 67, 13),
            center_radius=3,
        ),
        'tiny-151': dict(
            depths=(3, 3, 9, 3),
            channels=(124, 249, 499, 998),
            kernel_sizes=(151, 89, 87, 13),
            center_radius=3,
        ),
    }
    num_stages = 4
    stem_stride = 4

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        small_kernel: int | None = 5,
        conv_ratio: float = 0.375,
        pos_embed: bool = True,
        norm_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = 0,
        gap_before_final_norm: bool = True,
        with_cp: bool = False,
        deploy: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            _check_init_cfg(init_cfg)
            or dict(
                type='TruncNormal',
                layer=['Conv2d', 'Linear', 'PeripheralConv2d'],
                std=0.02,
                bias=0.0,
            )
        )
        settings = self._settings(arch)
        self.arch = deepcopy(arch)
        self.depths = settings['depths']
        self.channels = settings['channels']
        self.kernel_sizes = settings['kernel_sizes']
        self.center_radius = settings['center_radius']
        self.in_channels = check_integer(
            'in_channels', in_channels, 1, _MOST_CHANNELS
        )
        self.out_indices = self._indices(out_indices)
        built = max(self.out_indices) + 1
        self.frozen_stages = check_integer(
            'frozen_stages', frozen_stages, 0, self.num_stages
        )
        if check_number('drop_path_rate', drop_path_rate, 0, 1) == 1:
            raise ValueError(
                'drop_path_rate must be below 1, which would '
                'never run the last block, got 1'
            )
        check_number(
            'layer_scale_init_value', layer_scale_init_value, 0, _LARGEST_SCALE
        )
        for name, value in (
            ('pos_embed', pos_embed),
            ('with_cp', with_cp),
            ('gap_before_final_norm', gap_before_final_norm),
            ('deploy', deploy),
        ):
            check_bool(name, value)
        self.gap_before_final_norm = gap_before_final_norm
        self.deploy = deploy

        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        blocks = sum(self.depths)
        rates = [
            drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)
        ]
        for i in range(built):
            channels = self.channels[i]
            if i == 0:
                patch = self.stem_stride
                layers = [
                    nn.Conv2d(in_channels, channels, patch, stride=patch),
                    LayerNorm2d(channels, eps=1e-6),
                ]
            else:
                layers = [
                    LayerNorm2d(self.channels[i - 1], eps=1e-6),
                    nn.Conv2d(self.channels[i - 1], channels, 2, stride=2),
                ]
            self.downsample_layers.append(nn.Sequential(*layers))
            first = sum(self.depths[:i])
            self.stages.append(
                PeLKStage(
                    channels,
                    SharingGrid(self.kernel_sizes[i], self.center_radius),
                    rates[first : first + self.depths[i]],
                    pos_embed=pos_embed and not deploy,
                    layer_scale_init_value=layer_scale_init_value,
                    with_cp=with_cp,
                    conv_ratio=conv_ratio,
                    small_kernel=small_kernel,
                    norm_cfg=norm_cfg,
                    deploy=deploy,
                    backend=backend,
                )
            )
        for i in self.out_indices:
            norm = nn.LayerNorm if gap_before_final_norm else LayerNorm2d
            self.add_module(f'norm{i}', norm(self.channels[i], eps=1e-6))
        self._freeze()

    @classmethod
    def _settings(cls, arch: str | dict) -> dict:
        """The arch as a dict of tuples, checked."""
        if isinstance(arch, str):
            if arch not in cls.arch_settings:
                raise ValueError(
                    f'unknown arch {arch!r}'
                    f'{did_you_mean(arch, cls.arch_settings)}, expected one '
                    f'of {list(cls.arch_settings)} or a dict with depths, '
                    'channels, kernel_sizes and center_radius'
                )
            return cls.arch_settings[arch]
        if not isinstance(arch, Mapping):
            raise TypeError(
                f'arch must be a name or a dict, got {type(arch).__name__}'
            )
        lists = dict(
            depths=_MOST_BLOCKS,
            channels=_MOST_CHANNELS,
            kernel_sizes=LARGEST_KERNEL,
        )
        missing = [key for key in lists if key not in arch]
        unknown = sorted(set(arch) - {*lists, 'center_radius'}, key=str)
        if missing or unknown:
            hint = (
                did_you_mean(unknown[0], [*lists, 'center_radius'])
                if unknown
                else ''
            )
            raise ValueError(
                'an arch dict needs depths, channels and kernel_sizes and may '
                f'have center_radius; missing {missing}, unknown '
                f'{unknown}{hint}'
            )
        settings = {}
        for key, most in lists.items():
            values = arch[key]
            if isinstance(values, (str, bytes)) or not isinstance(
                values, Sequence
            ):
                raise TypeError(
                    f'arch[{key!r}] must be a sequence of '
                    f'{cls.num_stages} integers, got {values!r}'
                )
            if len(values) != cls.num_stages:
                raise ValueError(
                    f'arch[{key!r}] must have one entry for each of the '
                    f'{cls.num_stages} stages, got {len(values)}: '
                    f'{list(values)}'
                )
            settings[key] = tuple(
                check_integer(f'arch[{key!r}][{i}]', value, 1, most)
                for i, value in enumerate(values)
            )
        settings['center_radius'] = check_integer(
            "arch['center_radius']",
            arch.get('center_radius', 2),
            0,
            LARGEST_KERNEL // 2,
        )
        for size in settings['kernel_sizes']:
            try:
                SharingGrid(size, settings['center_radius'])
            except ValueError as error:
                raise ValueError(f"arch['kernel_sizes']: {error}") from error
        return settings

    @classmethod
    def _indices(cls, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        if isinstance(out_indices, Integral):
            out_indices = (out_indices,)
        if (
            not isinstance(out_indices, Sequence)
            or not out_indices
            or isinstance(out_indices, (str, bytes))
        ):
            raise TypeError(
                'out_indices must be an integer or a non-empty '
                f'sequence of integers, got {out_indices!r}'
            )
        indices = []
        for index in out_indices:
            index = check_integer(
                'out_indices', index, -cls.num_stages, cls.num_stages - 1
            )
            indices.append(index % cls.num_stages)
        return tuple(indices)

    @classmethod
    def out_channels(cls, arch: str | dict = 'tiny') -> list[int]:
        """Channels of each stage's output, for a neck's or a head's config.

        Args:
            arch (str | dict): As for the constructor. Default: ``'tiny'``.

        Returns:
            list[int]: One for each of the four stages.
        """
        return list(cls._settings(arch)['channels'])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of the stages in ``out_indices``.

        Args:
            x (Tensor): Images ``(N, in_channels, H, W)``, H and W at least 4
                times the downsampling of the stages behind the stem (32 for
                all four).

        Returns:
            tuple[Tensor]: ``(N, C_i)`` each with ``gap_before_final_norm``,
            otherwise ``(N, C_i, H / s_i, W / s_i)`` with strides s of 4, 8,
            16 and 32, contiguous.

        Raises:
            ValueError: If the image has the wrong number of channels or is
                too small for the strides.
        """
        self._check_input(x)
        outputs = {}
        for i, (down, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True)
        ):
            x = stage(down(x))
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                # Inside, maps are channels-last. Outside they must not be:
                # mmcv's RoIAlign takes the memory of such a map, or of what
                # a neck makes of it, for channels-first without a word.
                y = x.mean((2, 3)) if self.gap_before_final_norm else x
                outputs[i] = norm(y).contiguous()
        return tuple(outputs[i] for i in self.out_indices)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'PeLK expects images (N, {self.in_channels}, H, W), got '
                f'shape {tuple(x.shape)}'
            )
        least = self.stem_stride * 2 ** (len(self.stages) - 1)
        if min(x.shape[2:]) < least:
            raise ValueError(
                f'an image of {x.shape[2]} x {x.shape[3]} pixels is too '
                f'small: the stem has stride {self.stem_stride} and the '
                f'stages in use need at least {least} x {least}; resize or '
                'pad it'
            )

    def train(self, mode: bool = True) -> PeLK:
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        frozen = slice(self.frozen_stages)
        for module in (*self.downsample_layers[frozen], *self.stages[frozen]):
            module.eval()
            module.requires_grad_(False)

    def switch_to_deploy(self) -> None:
        """Merge norms, small kernels and positional embeddings.

        Exact in eval mode. The kernels stay compact, so the merged model runs
        on the same backends. It cannot go back; weights saved from it load
        into a model built with ``deploy=True``.

        A small kernel fills zeros that a sparse large kernel has in its
        centre; by how much is logged.
        """
        if self.deploy:
            return
        before = self._kernel_density()
        for stage in self.stages:
            stage.merge()
        self.deploy = True
        after = self._kernel_density()
        if after != before:
            print_log(
                f'{type(self).__name__}: merging the small kernels takes the '
                f'large ones from {before:.2%} to {after:.2%} non-zero '
                'weights',
                logger='current',
            )

    def _kernel_density(self) -> float:
        """Share of non-zero weights in the large kernels."""
        kernels = [
            block.conv.large.weight
            for stage in self.stages
            for block in stage.blocks
        ]
        return sum(int(kernel.count_nonzero()) for kernel in kernels) / sum(
            kernel.numel() for kernel in kernels
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
            param_name (str): Name of the parameter.
            prefix (str): What comes before the backbone's own names, such as
                ``'backbone.'``. Default: ``''``.

        Returns:
            tuple[int, int]: The depth, and the number of depths.
        """
        third = 3
        last = third + ceil(self.depths[2] / 3)
        if not param_name.startswith(prefix):
            return last + 1, last + 2
        name = param_name[len(prefix) :].split('.')
        if name[0] == 'downsample_layers':
            return (0, 2, third, last)[int(name[1])], last + 2
        if name[0] == 'stages':
            stage = int(name[1])
            depth = (1, 2, third, last)[stage]
            if stage == 2 and name[2] == 'blocks':
                depth += int(name[3]) // 3
            return depth, last + 2
        return last + 1, last + 2

    def init_weights(self) -> None:
        """Initialise; pretrained weights are checked and reported."""
        cfg = pretrained_of(self.init_cfg)
        if cfg is None:
            super().init_weights()
            return
        if cfg is not self.init_cfg:
            # As mmengine does it: what else is in a list comes first.
            initialize(
                self, [other for other in self.init_cfg if other is not cfg]
            )
        load_pretrained(self, cfg['checkpoint'], cfg.get('prefix') or '')
        self._is_init = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        check_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_init_cfg(init_cfg: object) -> dict | list[dict] | None:
    """Raise unless mmengine can read it, which it does long afterwards."""
    if init_cfg is None:
        return None
    for cfg in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if not isinstance(cfg, Mapping):
            raise TypeError(
                'init_cfg must be None, a dict or a list of dicts, got '
                f'{cfg!r} of type {type(cfg).__name__}'
            )
        if not isinstance(cfg.get('type'), (str, type)):
            raise ValueError(
                "init_cfg needs a type, such as 'Pretrained' or "
                f"'TruncNormal', got {dict(cfg)}"
            )
        if not is_pretrained(cfg):
            continue
        for key, need in (
            ('checkpoint', (str,)),
            ('prefix', (str, type(None))),
        ):
            if not isinstance(cfg.get(key), need):
                raise TypeError(
                    f'init_cfg.{key} must be a string, got {cfg.get(key)!r}'
                )
    pretrained_of(init_cfg)
    return init_cfg
