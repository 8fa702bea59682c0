"""What to know about the weights that a training starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ...models.utils import pretrained_of
from ...utils.config import home_of, type_name, unwrapped
from ..hooks import DynamicSparsityHook
from ..sparsity.masks import mask_from_zeros
from ..sparsity.matching import SPARSE_SHARE
from ..strategies import is_sharded


class StartingWeightsHook(Hook):
    """Warns of weights that most trainings would not start from.

    A line says that the backbone of a segmentor or detector starts at random,
    unless its ``init_cfg`` says how, and one that zeros of a sparse checkpoint
    will be filled. A resumed training is as it was.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the weights, which are loaded by now."""
        if runner._resume:
            return
        model = unwrapped(runner.model)
        lines = [] if runner._load_from else [*_random(model, runner.cfg)]
        keeps = any(isinstance(h, DynamicSparsityHook) for h in runner.hooks)
        if not keeps and not is_sharded(runner):
            lines += _sparse(model)
        for line in lines:
            print_log(line, 'current', logging.WARNING)


def _random(model: nn.Module, config: Config) -> Iterator[str]:
    """Backbones without weights where a classifier's are expected."""
    whole = pretrained_of(config.model.get('init_cfg'))
    if whole or home_of(type(model)) not in ('mmseg', 'mmdet'):
        return
    for place, backbone in _backbones(config.model, 'model'):
        if not backbone.get('init_cfg'):
            place += '.init_cfg'
            yield (
                f'the backbone starts from random weights, as {place} names '
                f'none; for those of a classifier: --cfg-options {place}.type='
                f'Pretrained {place}.prefix=backbone. {place}.checkpoint=PATH'
            )


def _backbones(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    """Configs of PeLKs, and where in a config they are."""
    if isinstance(node, Mapping):
        if type_name(node) == 'PeLK':
            yield place, node
        for key, value in node.items():
            yield from _backbones(value, f'{place}.{key}')


def _sparse(model: nn.Module) -> Iterator[str]:
    """Zeros that no hook keeps."""
    total = zeros = 0
    for weight in model.parameters():
        # A layer of nothing but zeros is one that starts there.
        if weight.ndim in (2, 4) and weight.requires_grad and weight.any():
            total += weight.numel()
            zeros += int((~mask_from_zeros(weight.detach())).sum())
    if zeros > max(1, SPARSE_SHARE * total):
        yield (
            f'{zeros / total:.0%} of the weights are zero, as in a sparse '
            'checkpoint, and the training will fill them; to keep them zero: '
            "custom_hooks=[dict(type='DynamicSparsityHook', init='zeros', "
            'update_interval=None)] in the config'
        )
