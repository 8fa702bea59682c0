"""Learning rates that decay with depth, for any backbone that knows its."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...ops import checks
from ..strategies import plain_name, whole_parameters
from .cell_learning_rates import CellLearningRates
from .parameter_kinds import DECAYS, parameter_kinds

#: mmengine's names, made of a kind and what is scaled.
_MULTS = (
    'norm_decay_mult',
    'bias_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'bias_lr_mult',
    'dcn_offset_lr_mult',
)
_CUSTOM_MULTS = ('lr_mult', 'decay_mult')
#: Deeper than any backbone.
_MOST_LAYERS = 10_000
_FIELDS = (
    'decay_rate',
    'decay_type',
    'num_layers',
    'custom_keys',
    'bypass_duplicate',
    'scale_lr_by_cell_area',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise or stage-wise learning-rate decay.

    A parameter at depth d of D gets the learning rate
    ``lr * decay_rate ** (D - 1 - d)``: everything behind the backbone (output
    norms, necks, heads) the full one, the stem the smallest. Depths are the
    backbone's own: the constructor finds every module with a
    ``get_layer_depth(name, prefix)``, under any name and in any wrapper.

    ``paramwise_cfg`` may hold

    - ``decay_rate`` (float): in (0, 1]. With 1 the backbone need not know
      its depths. Required.
    - ``decay_type`` (str): ``'layer_wise'`` takes the depths of
      ``get_layer_depth``. ``'stage_wise'`` is the rule of ConvNeXt's
      segmentation recipe: depth 0 for the stem and all downsampling layers,
      i + 1 for stage i, ``num_layers + 1`` behind the backbone. Default:
      ``'layer_wise'``.
    - ``num_layers`` (int): layers of the backbone, 6 or 12 in ConvNeXt's
      recipes. Layer-wise it must agree with the backbone. Default: what the
      backbone says.
    - ``custom_keys`` (dict): as in mmengine: for the longest key that is part
      of a parameter's name, ``lr_mult`` (on top of the decay) and
      ``decay_mult``. Other fields go into the optimizer's group as they are:
      its own options, ``fix_lr`` of mmpretrain's SimSiamHook.
    - ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult`` (float):
      factors of the weight decay for the parameters of norms, for biases, and
      for what else is one-dimensional (LayerScale) or an embedding. Default:
      0 each.
    - ``dwconv_decay_mult``, ``bias_lr_mult``, ``dcn_offset_lr_mult`` (float):
      factors for the weights of depthwise convolutions, for biases other than
      those of norms, and for the offsets of deformable convolutions. Default:
      1 each.
    - ``scale_lr_by_cell_area`` (bool): divide the learning rate of each
      weight of a :class:`~pelk_mm.models.layers.PeripheralConv2d`, in or
      outside a backbone, by the area of its cell: an adaptive optimizer then
      moves the output as far as by a weight that is not shared. The optimizer
      must hold the parameters themselves. Default: False.
    - ``bypass_duplicate`` (bool): may be there, as mmengine has it; a shared
      parameter is in one group anyway.

    Raises:
        TypeError: If a field of ``paramwise_cfg`` has the wrong type.
        ValueError: If no backbone knows its depths, a parameter cannot be
            placed, ``paramwise_cfg`` is wrong, or the optimizer lacks the
            ``lr`` or ``weight_decay`` that it would scale.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(
        ...         decay_rate=0.9, decay_type='stage_wise', num_layers=6))
    """

    #: Of the parameters of the model that is called with.
    _kinds: dict[str, str] | None = None

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        optimizer = None
        if isinstance(optim_wrapper_cfg, Mapping):
            optimizer = optim_wrapper_cfg.get('optimizer')
        if not isinstance(optimizer, Mapping):
            raise TypeError(
                'optim_wrapper must be a dict with a dict optimizer, such as '
                "dict(optimizer=dict(type='AdamW', lr=1e-4)), got "
                f'{optim_wrapper_cfg!r}'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model, wrapped or not."""
        # Pieces of FSDP are flat: without their shapes none would decay.
        with whole_parameters(model):
            self._kinds = parameter_kinds(getattr(model, 'module', model))
        try:
            wrapper = super().__call__(model)
        finally:
            self._kinds = None
        if self.paramwise_cfg.get('scale_lr_by_cell_area'):
            CellLearningRates(model).attach(wrapper.optimizer)
        return wrapper

    def _validate_cfg(self) -> None:
        cfg = self.paramwise_cfg
        _check_dict('paramwise_cfg', cfg, (*_FIELDS, *_MULTS))
        if 'decay_rate' not in cfg:
            raise ValueError('paramwise_cfg needs a decay_rate in (0, 1]')
        if checks.check_number('decay_rate', cfg['decay_rate'], 0, 1) == 0:
            raise ValueError('decay_rate must be above 0, got 0')
        kind = cfg.get('decay_type', 'layer_wise')
        checks.check_choice('decay_type', kind, ('layer_wise', 'stage_wise'))
        layers = cfg.get('num_layers')
        if layers is not None:
            checks.check_integer('num_layers', layers, 1, _MOST_LAYERS)
        for name in ('bypass_duplicate', 'scale_lr_by_cell_area'):
            checks.check_bool(name, cfg.get(name, False))
        multipliers = {key: cfg[key] for key in _MULTS if key in cfg}
        custom = cfg.get('custom_keys', {})
        _check_dict('custom_keys', custom)
        for key, value in custom.items():
            name = f'custom_keys[{key!r}]'
            if not isinstance(key, str):
                raise TypeError(
                    f"{name} must be part of a parameter's name, got a key "
                    f'of type {type(key).__name__}'
                )
            _check_dict(name, value)
            for part, mult in value.items():
                if part in _CUSTOM_MULTS:
                    multipliers[f'{name}.{part}'] = mult
                elif hint := checks.did_you_mean(part, _CUSTOM_MULTS):
                    print_log(
                        f'{name}: {part!r} is no multiplier, it goes into the '
                        f"optimizer's group as it is{hint}",
                        logger='current',
                        level=logging.WARNING,
                    )
        for name, mult in multipliers.items():
            checks.check_number(name, mult, 0)
        rates = {'lr': self.base_lr, 'weight_decay': self.base_wd}
        for name, rate in rates.items():
            if rate is not None:
                checks.check_number(f'optimizer.{name}', rate, 0)
        if self.base_lr is None:
            raise ValueError(
                'the optimizer needs an lr, which decays with depth; got '
                f'{self.optimizer_cfg}'
            )
        decays = [
            name
            for name, mult in multipliers.items()
            if mult and name.endswith('decay_mult')
        ]
        if decays and self.base_wd is None:
            raise ValueError(
                f'the optimizer needs a weight_decay, which '
                f'{list(multipliers)} would scale; got {self.optimizer_cfg}'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, **kwargs
    ) -> None:
        """Put every trainable parameter of the model in exactly one group.

        Args:
            params (list[dict]): The parameter groups, filled in place, sorted
                by depth. Each has ``params``, ``param_names``,
                ``group_name``, ``lr`` and ``lr_scale``, and ``weight_decay``
                if the optimizer's config has one or it is 0.
            module (nn.Module): The model, or a backbone alone.
            **kwargs: Not used; mmengine's recursion passes them.
        """
        groups = self.make_groups(module)
        lines = ['learning-rate decay by depth:'] + [
            f'  {group["group_name"]}: {len(group["params"])} tensors, '
            f'lr x {group["lr_scale"]:.4g}'
            for group in groups
        ]
        print_log('\n'.join(lines), logger='current')
        params.extend(groups)

    def make_groups(self, module: nn.Module) -> list[dict]:
        """The groups that :meth:`add_params` adds.

        Args:
            module (nn.Module): The model, or a backbone alone.

        Returns:
            list[dict]: Sorted by depth.

        Raises:
            ValueError: If there are no depths, or a parameter has none.
        """
        backbones = _find_backbones(module)
        if not backbones and self.paramwise_cfg['decay_rate'] != 1:
            raise ValueError(
                f'no module of {type(module).__name__} has a method '
                'get_layer_depth(name, prefix), from which '
                'LayerDecayOptimWrapperConstructor takes the depths; use a '
                'backbone that has one, such as PeLK, decay_rate=1.0 or '
                'another constructor'
            )
        kinds = self._kinds or parameter_kinds(module)
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            name = plain_name(name)
            owner = _owner(name, backbones)
            depth, scale = self._depth(name, owner, backbones)
            lr_mult, decay_mult, source, rest = self._custom(name, kinds[name])
            # Several backbones count their depths each for itself.
            layer = owner or '' if len(backbones) > 1 else ''
            # Custom settings may split a depth further; decays of 0 and 1 are
            # the usual two.
            key = (depth, layer, decay_mult, lr_mult, source)
            if key not in groups:
                groups[key] = self._new_group(*key, scale * lr_mult) | rest
            groups[key]['params'].append(parameter)
            groups[key]['param_names'].append(name)
        return [groups[key] for key in sorted(groups)]

    def _new_group(
        self,
        depth: int,
        layer: str,
        decay: float,
        lr: float,
        source: str,
        scale: float,
    ) -> dict:
        name = f'{layer}layer_{depth}_{"decay" if decay else "no_decay"}'
        if decay not in (0, 1):
            name += f'_x{decay:g}'
        if lr != 1:
            name += f'_lr_x{lr:g}'
        if source:
            name += f'_{source}'
        group = dict(params=[], param_names=[], group_name=name)
        group |= dict(lr=self.base_lr * scale, lr_scale=scale)
        if self.base_wd is not None:
            group['weight_decay'] = self.base_wd * decay
        elif decay == 0:
            # The optimizer may have a default of its own, as AdamW has.
            group['weight_decay'] = 0.0
        return group

    def _depth(
        self, name: str, owner: str | None, backbones: dict[str, Any]
    ) -> tuple[int, float]:
        """Depth of a parameter and the factor of its learning rate."""
        if not backbones:
            return 0, 1.0
        cfg = self.paramwise_cfg
        prefix = next(iter(backbones)) if owner is None else owner
        backbone = backbones[prefix]
        depth, total = backbone.get_layer_depth(name, prefix)
        layers = cfg.get('num_layers') or total - 2
        if cfg.get('decay_type') == 'stage_wise':
            if owner is not None:
                depth = _stage_depth(name, prefix, depth, total, layers)
            total = layers + 2
        elif layers != total - 2:
            raise ValueError(
                f'num_layers={layers}, but the backbone '
                f'{type(backbone).__name__} has {total - 2} layers; leave '
                'num_layers out or set it to that'
            )
        if owner is None:
            depth = total - 1
        return depth, cfg['decay_rate'] ** (total - 1 - depth)

    def _custom(self, name: str, kind: str) -> tuple[float, float, str, dict]:
        """Factors of learning rate and weight decay; a custom key, its rest.

        The key is '' where it sets nothing but factors.
        """
        cfg = self.paramwise_cfg
        custom = cfg.get('custom_keys', {})
        keys = [key for key in custom if key in name]
        # The longest, and of several the first in the alphabet.
        source = min(keys, key=lambda key: (-len(key), key), default='')
        rest = dict(custom.get(source, {}))
        factors = []
        for part, default in (('lr_mult', 1), ('decay_mult', DECAYS[kind])):
            factor = cfg.get(f'{kind}_{part}', default)
            factors.append(float(rest.pop(part, factor)))
        return *factors, source if rest else '', rest


def _check_dict(
    name: str, value: object, known: Sequence[str] | None = None
) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f'{name} must be a dict, got {type(value).__name__}')
    unknown = sorted(set(value) - set(known or value), key=str)
    if unknown:
        raise ValueError(
            f'{name} may have {", ".join(known)}, got unknown '
            f'{", ".join(map(str, unknown))}'
            f'{checks.did_you_mean(unknown[0], known)}'
        )


def _find_backbones(model: nn.Module) -> dict[str, Any]:
    """Innermost modules that know their parameters' depths, by prefix."""
    found = {
        f'{name}.' if name else '': module
        for name, module in model.named_modules()
        if _knows_depths(module)
    }
    return {
        plain_name(prefix): module
        for prefix, module in found.items()
        if sum(other.startswith(prefix) for other in found) == 1
    }


def _owner(name: str, backbones: Iterable[str]) -> str | None:
    """Prefix of the backbone that a parameter belongs to, if any."""
    owners = (prefix for prefix in backbones if name.startswith(prefix))
    return next(owners, None)


def _knows_depths(module: nn.Module) -> bool:
    method = getattr(module, 'get_layer_depth', None)
    # mmpretrain's classifiers have one without a prefix, which only asks a
    # backbone that may have none.
    return callable(method) and 'prefix' in signature(method).parameters


def _stage_depth(
    name: str, prefix: str, depth: int, total: int, num_layers: int
) -> int:
    """Depth by the stage in the name, as ConvNeXt's segmentation recipe."""
    own = name[len(prefix) :]
    stage = re.match(r'stages\.(\d+)\.', own)
    if stage:
        found = int(stage[1]) + 1
        if found > num_layers:
            raise ValueError(
                f'num_layers={num_layers} is less than the stages of the '
                f'backbone: {name} is in stage {found}'
            )
        return found
    if own.startswith('downsample_layers.') or depth == 0:
        return 0
    if depth == total - 1:
        return num_layers + 1
    raise ValueError(
        f"decay_type='stage_wise' cannot place the parameter {name}: its name "
        'has no stages.N; use layer_wise for this backbone'
    )
