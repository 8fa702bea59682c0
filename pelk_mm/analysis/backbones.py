"""The backbone of any library's config, on its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..models import PeLK
from ..models.layers import embed_weights
from ..models.utils import load_pretrained, read_checkpoint, weights_of
from ..utils.config import scope_of, type_name

#: Where weights of a backbone are in a checkpoint; the first that fits.
_PREFIXES = ('backbone.', 'module.backbone.', '')
#: Asked for by some tasks and not by others, as norms of the outputs are.
_OPTIONAL = re.compile(r'norm\d+\.|(head|fc)\.|.*num_batches_tracked$')


def build_backbone(
    config: Config,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the backbone of a model's config, in training mode, on the CPU.

    ``checkpoint`` is of the model or the backbone, None for random weights;
    ``options`` are arguments that are set if the backbone has them.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it holds no weights for this backbone.
        ValueError: If the config has no backbone, or of an unknown type.
    """
    if config.model.get('backbone') is None:
        raise ValueError(
            'the config has no model.backbone; give one of a model with a '
            'backbone'
        )
    with scope_of(config):
        whole = deepcopy(config.model.backbone)
        settings = whole
        while type_name(settings) == 'EnlargedKernels':
            settings = settings.backbone
        try:
            known = _arguments(settings.type)
        except KeyError as error:
            raise ValueError(str(error.args[0])) from error
        given = (options or {}).items()
        settings.update({k: v for k, v in given if k in known})
        # Weights come from `checkpoint` alone.
        if 'Pretrained' in str(settings.get('init_cfg')):
            settings.init_cfg = None
        backbone = MODELS.build(whole)
    if checkpoint is None:
        if hasattr(backbone, 'init_weights'):
            backbone.init_weights()
    elif isinstance(backbone, PeLK):
        load_pretrained(backbone, checkpoint, 'backbone.')
    else:
        _load_weights(backbone, checkpoint)
    return backbone


def _arguments(kind: str | type) -> set[str]:
    """Names of the arguments of a class and of what it derives from."""
    if isinstance(kind, str):
        # As `build` looks it up: first in the library of the config.
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if kind is None:
        raise KeyError(
            'the type of the backbone is not registered; add the module that '
            'defines it to custom_imports of the config'
        )
    names: set[str] = set()
    for base in kind.__mro__[:-1]:
        names.update(inspect.signature(base.__init__).parameters)
    return names


def _load_weights(backbone: nn.Module, checkpoint: str) -> None:
    """Load weights, and refuse those of another network, unlike mmengine."""
    state = weights_of(read_checkpoint(checkpoint), checkpoint)
    own = backbone.state_dict()
    kind = type(backbone).__name__
    fits = (p for p in _PREFIXES if any(p + name in state for name in own))
    prefix = next(fits, None)
    if prefix is None:
        raise RuntimeError(
            f'{checkpoint} has no weights of a {kind}: '
            f'none of its {len(state)} names is one of the backbone'
        )
    weights = {
        name[len(prefix) :]: value
        for name, value in state.items()
        if name.startswith(prefix)
    }
    weights = embed_weights(backbone, weights)
    wrong = _misfits(own, weights, strict=bool(prefix))
    if wrong:
        more = [f'and {len(wrong) - 3} more'] * (len(wrong) > 3)
        text = '; '.join(wrong[:3] + more)
        raise RuntimeError(f'{checkpoint} does not fit this {kind}: {text}')
    backbone.load_state_dict(weights, strict=False)


def _misfits(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], strict: bool
) -> list[str]:
    """Where a checkpoint differs from this backbone."""
    wrong = [
        f'{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}'
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    missing = [name for name in own if name not in given]
    wrong += [f'{x} is missing' for x in missing if not _OPTIONAL.match(x)]
    if strict:
        # Without a prefix there may be heads.
        more = [name for name in given if name not in own]
        more = [name for name in more if not _OPTIONAL.match(name)]
        wrong += [f'{name} is not in the backbone' for name in more]
    return wrong
