"""Reading a config, and building what it describes."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from .errors import LaunchError


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config file, override some of its fields, and set ``work_dir``.

    It may come with a package:
    ``'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'``. Options are by
    dotted name. A LaunchError says that there is no such file or config.
    """
    file, lazy_import = _find_config(path)
    try:
        config = Config.fromfile(file, lazy_import=lazy_import)
        config.merge_from_dict(dict(options or {}))
    except Exception as error:
        why = f'{type(error).__name__}: {error}'
        text = f'{path} cannot be read as a config: {why}'
        raise LaunchError(text) from error
    if config.get('model') is None:
        raise LaunchError(f'{path} has no model; is it a part of a config?')
    if config.get('work_dir') is None:
        config.work_dir = osp.join('work_dirs', Path(path).stem)
    return config


def _find_config(path: str) -> tuple[str, bool | None]:
    """A config's file, and whether mmengine has to be told its syntax."""
    package, separator, name = path.partition('::')
    if not separator:
        if not osp.isfile(path):
            raise LaunchError(f'there is no config file {path}')
        return path, None
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise LaunchError(f'{path}: the package {package!r} is not installed')
    file = osp.join(osp.dirname(spec.origin), '.mim', 'configs', name)
    if not osp.isfile(file):
        raise LaunchError(
            f'{path}: {package} comes with no such config; expected a path '
            f'within {file.removesuffix(name)}'
        )
    # mmengine takes an `import` in a base config for the lazy syntax, and
    # then refuses the mixture; some of mmpretrain's configs have one.
    return file, 'read_base' in Path(file).read_text(encoding='utf-8')


def build_model(config: Config, device: str = 'cpu') -> BaseModel:
    """Build the model of a config as the runner would, not initialised.

    On the device ``'meta'`` it has shapes but no weights, and costs nothing.
    """
    scope = DefaultScope.get_current_instance()
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        # Some models change the config that they are built from.
        model = copy.deepcopy(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        with torch.device(device):
            return MODELS.build(model)
    finally:
        if scope is not None:
            init_default_scope(scope.scope_name)
