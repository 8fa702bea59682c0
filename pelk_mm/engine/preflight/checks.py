"""Models that cannot be built, and weights that do not fit them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import OPTIMIZERS, init_default_scope
from torch import Tensor, nn

from ...models import PeLK
from ...models.layers import embed_weights
from ...models.utils import (
    Checkpoints,
    as_pelk,
    check_pretrained,
    check_state_dict,
    find_convnexts,
    other_stem,
    weights_of,
)
from ...ops.checks import did_you_mean
from ...utils.config import build_model
from ...utils.errors import LIKELY, LaunchError, explain, registered
from ...utils.output import quiet
from ...utils.text import first_few

#: How a whole model starts from a file of another library.
_BARE_CONVNEXT = (
    '. It holds a ConvNeXt: start the backbone from it with '
    "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...), or make "
    'it a checkpoint of a whole model with '
    'tools/model_converters/from_convnext.py'
)


def preflight(
    config: Config,
    training: bool = True,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Raise unless a config's model can be built, and its weights fit it.

    Looked for are fields of the model that cannot be, and weights
    (``load_from`` and the backbone's ``init_cfg``) of another arch or number
    of classes.

    A checkpoint's head with another number of classes is refused, unless the
    config has ``new_head = True``: then that head starts at random. To
    test, the checkpoint must hold every weight. A LaunchError names all that
    is wrong.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    try:
        model = _build(config)
    except LIKELY as error:
        text = f'the model cannot be built: {explain(error)}'
        raise LaunchError(text) from error
    checkpoints = checkpoints or Checkpoints()
    problems = [*_load_problems(config, model, checkpoints, training)]
    if training:
        problems += _pretrained_problems(model, checkpoints)
        problems += _optimizer_problems(config)
    _report(problems)


def check_weights(config: Config, checkpoint: Mapping, name: str) -> None:
    """A LaunchError unless a checkpoint, ``name``, holds a model's weights."""
    try:
        given = weights_of(checkpoint, name)
    except RuntimeError as error:
        raise LaunchError(str(error)) from error
    model = _build(config)
    _report(_weight_problems(config, model, given, name, training=False))


def _report(problems: Iterable[str]) -> None:
    problems = list(dict.fromkeys(problems))
    if len(problems) > 1:
        raise LaunchError('\n- '.join(['the run would fail:', *problems]))
    if problems:
        raise LaunchError(problems[0])


def _build(config: Config) -> nn.Module:
    """The model, without its weights if it can be built so.

    What is logged then will be logged again when the run builds its own.
    """
    with quiet():
        try:
            return build_model(config, device='meta')
        except Exception:
            # It may be fit for real devices only.
            return build_model(config)


def _backbones(model: nn.Module) -> Iterator[tuple[str, PeLK]]:
    for name, module in model.named_modules():
        if isinstance(module, PeLK):
            yield f'{name}.' if name else '', module


def _pretrained_problems(
    model: nn.Module, checkpoints: Checkpoints
) -> Iterator[str]:
    for prefix, backbone in _backbones(model):
        try:
            check_pretrained(backbone, checkpoints)
        except (OSError, RuntimeError) as error:
            yield f'model.{prefix}init_cfg: {error}'


def _optimizer_problems(config: Config) -> Iterator[str]:
    """An optimizer that is not there, of which mmengine says "None"."""
    wrapper = config.get('optim_wrapper')
    optimizer = wrapper.get('optimizer') if wrapper else None
    kind = optimizer.get('type') if isinstance(optimizer, Mapping) else None
    if not isinstance(kind, str) or 'strategy' in config:
        return
    with OPTIMIZERS.switch_scope_and_registry(None) as registry:
        if registry.get(kind) is None:
            hint = did_you_mean(kind, registered(registry))
            yield f'optim_wrapper.optimizer: there is no {kind!r}{hint}'


def _load_problems(
    config: Config, model: nn.Module, checkpoints: Checkpoints, training: bool
) -> Iterator[str]:
    path = config.get('load_from')
    if not path or '://' in path:
        return
    try:
        given = weights_of(checkpoints.read(path), path)
    except (OSError, RuntimeError) as error:
        yield str(error)
        return
    yield from _weight_problems(config, model, given, path, training)


def _weight_problems(
    config: Config,
    model: nn.Module,
    given: Mapping[str, Tensor],
    path: str,
    training: bool,
) -> Iterator[str]:
    given = {k.removeprefix('module.'): v for k, v in given.items()}
    own = model.state_dict()
    backbones = dict(_backbones(model))
    try:
        for prefix, backbone in backbones.items():
            given, _ = as_pelk(backbone, given, prefix)
    except RuntimeError as error:
        yield f'{path}: {error}'
        return
    if not own.keys() & given.keys():
        hint = _BARE_CONVNEXT if find_convnexts(given) else ''
        yield (
            f'{path} holds no weight of this model: it has '
            f'{first_few(list(given))}, the model {first_few(list(own))}{hint}'
        )
        return
    for prefix, backbone in backbones.items():
        try:
            check_state_dict(backbone, given, prefix)
        except RuntimeError as error:
            yield f'{path}: {error}'
            continue
        stem = other_stem(backbone, given, prefix)
        if stem is None:
            continue
        if not training or config.get('resume'):
            yield f'{path}: {stem}'
            continue
        print_log(
            f'{path}: {stem}: it starts at random, the rest is loaded',
            logger='current',
            level=logging.WARNING,
        )
    explained = tuple(backbones)
    rest = {k: v for k, v in own.items() if not k.startswith(explained)}
    fitting = embed_weights(model, given)
    yield from _head_problems(config, path, rest, fitting, training)
    if not training:
        missing = [name for name in own if name not in given]
        counter = 'num_batches_tracked'
        missing = [name for name in missing if not name.endswith(counter)]
        if missing:
            count = f'{len(missing)} of the {len(own)} entries'
            yield f'{path} lacks {count} of the model: {first_few(missing)}'


def _head_problems(
    config: Config,
    path: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    training: bool,
) -> Iterator[str]:
    both = [name for name in own if name in given]
    wrong = [name for name in both if given[name].shape != own[name].shape]
    if not wrong:
        return
    shapes = '; '.join(
        f'{name} is {tuple(given[name].shape)} in the checkpoint, '
        f'{tuple(own[name].shape)} in the model'
        for name in wrong[:3]
    )
    may_differ = training and not config.get('resume')
    if may_differ and config.get('new_head'):
        print_log(
            f'new_head: {len(wrong)} entries do not fit {path} and start '
            f'at random: {", ".join(wrong)}',
            'current',
        )
        return
    advice = '; for data of other classes, train a new head with '
    advice += '--cfg-options new_head=True'
    yield (
        f'{path} does not fit the model behind the backbone, as with '
        f'another number of classes ({shapes}){advice if may_differ else ""}'
    )
