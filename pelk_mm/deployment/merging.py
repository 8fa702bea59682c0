"""From a training checkpoint to merged weights with a config of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from ..apis.launch import require_checkpoint
from ..models import PeLK
from ..models.utils import read_checkpoint
from ..models.utils.safe_saving import kept_meta
from ..utils.config import build_model
from ..utils.errors import LaunchError
from ..utils.files import atomic_path
from ..version import __version__
from .compare import Difference, compare
from .networks import check_shape, load_model, make_network, random_images

#: Of a config, what only training reads.
_TRAINING_ONLY = (
    'train_cfg',
    'train_dataloader',
    'train_pipeline',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'auto_scale_lr',
    'load_from',
    'resume',
    'work_dir',
)
#: Merging is exact but for rounding: more than this is a defect.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Merged:
    """What :func:`reparameterize` wrote: files that go together.

    ``config`` stands alone, with ``deploy=True``; ``parameters`` are numbers
    before and after, ``differences`` those of the outputs.
    """

    config: Path
    checkpoint: Path
    parameters: tuple[int, int]
    differences: list[Difference]


@torch.no_grad()
def reparameterize(
    config: Config,
    checkpoint: str,
    folder: str | Path,
    shape: Sequence[int] = (224, 224),
) -> Merged:
    """Merge the weights of a training checkpoint.

    Writes ``CONFIG_deploy.py`` and ``CONFIG_deploy.pth`` to the folder, both
    or none. ``shape`` is that of the random image, in pixels, that outputs are
    compared on. Raises LaunchError if there is nothing to merge or config and
    checkpoint do not go together, and RuntimeError if outputs differ by more
    than rounding explains.
    """
    check_shape(shape)
    found = list(_backbone_configs(config.model))
    if not found:
        raise LaunchError(
            'the model of the config has no PeLK: there is nothing to merge'
        )
    if all(backbone.get('deploy') for backbone in found):
        raise LaunchError(
            'the config describes a model that is merged '
            'already (deploy=True): there is nothing to merge'
        )
    contents = require_checkpoint(checkpoint)
    model = load_model(config, contents, checkpoint)
    network = make_network(config, model)
    image = random_images(shape)
    outputs, counts = [], []
    for merge in (lambda: None, network.merge):
        merge()
        outputs.append(network.outputs(image))
        counts.append(sum(value.numel() for value in model.parameters()))
    differences = compare(*outputs)
    worst = max(found.relative for found in differences)
    if worst > _TOLERANCE:
        raise RuntimeError(
            f'merging {checkpoint} changes an output by {worst:.1e} of its '
            f'largest value, more than the {_TOLERANCE:.0e} that rounding '
            'could explain; nothing is written'
        )
    stem = f'{Path(config.filename or "config").stem}_deploy'
    paths = Path(folder, f'{stem}.py'), Path(folder, f'{stem}.pth')
    result = Merged(*paths, tuple(counts), differences)
    meta = dict(kept_meta(contents), config=stem, pelk_mm_version=__version__)
    weights = dict(meta=meta, state_dict=model.state_dict())
    merged_config = merge_config(config)
    # Whichever of the two fails, neither appears.
    with (
        atomic_path(result.checkpoint) as weights_path,
        atomic_path(result.config) as config_path,
    ):
        torch.save(weights, weights_path)
        config_path.write_text(merged_config.pretty_text, encoding='utf-8')
        _check_written(config_path, weights_path)
    return result


def merge_config(config: Config) -> Config:
    """A config of the merged model, standing alone, for use and no training.

    It has ``deploy=True`` in every PeLK, and nothing that only training reads.
    """
    fields = config.to_dict()
    for name in _TRAINING_ONLY:
        fields.pop(name, None)
    for backbone in _backbone_configs(fields['model']):
        backbone['deploy'] = True
        # These were the weights to start training from.
        backbone.pop('init_cfg', None)
    return Config(fields)


def _backbone_configs(node: Any) -> Iterator[dict]:
    """Every PeLK in a model's config."""
    if isinstance(node, Mapping):
        if _is_pelk(node.get('type')):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _backbone_configs(item)


def _is_pelk(kind: Any) -> bool:
    if isinstance(kind, str):
        kind = MODELS.get(kind) if kind.split('.')[-1] == 'PeLK' else None
    return isinstance(kind, type) and issubclass(kind, PeLK)


def _check_written(config: Path, checkpoint: Path) -> None:
    """Raise unless what was written loads as it will be loaded."""
    model = build_model(Config.fromfile(config), device='meta')
    model.load_state_dict(read_checkpoint(checkpoint)['state_dict'])
