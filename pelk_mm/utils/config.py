"""Reading a config, and building what it describes."""

from __future__ import annotations

import ast
import copy
import os.path as osp
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel, BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.utils import import_modules_from_strings

from pelk_mm_names import CONFIGS, like

from .errors import LaunchError

#: The task libraries.
LIBRARIES = ('mmpretrain', 'mmseg', 'mmdet')


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config file and override some of its fields.

    ``work_dir`` is set, and in a pure Python config ``default_scope``, which
    is None there: it names the library of the model.

    It may come with a package:
    ``'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'``; of this one the
    name will do: ``'pelk_t_in1k'``. Options are by dotted name. A LaunchError
    says that there is no such file or config.
    """
    file, lazy_import = _find_config(path)
    try:
        config = Config.fromfile(file, lazy_import=lazy_import)
        config.merge_from_dict(dict(options or {}))
        # mmengine imports those of the file, before the options are there.
        if 'custom_imports' in config:
            import_modules_from_strings(**config.custom_imports)
    except Exception as error:
        why = f'{type(error).__name__}: {error}'
        text = f'{path} cannot be read as a config: {why}'
        raise LaunchError(text) from error
    if config.get('model') is None:
        raise LaunchError(f'{path} has no model; is it a part of a config?')
    if config.get('default_scope') is None:
        config.default_scope = home_of(config.model.get('type'))
    if config.get('work_dir') is None:
        config.work_dir = osp.join('work_dirs', Path(path).stem)
    return config


def _find_config(path: str) -> tuple[str, bool | None]:
    """A config's file, and whether mmengine has to be told its syntax."""
    package, separator, name = path.partition('::')
    if not separator:
        if not osp.isfile(path):
            name = path.removeprefix('configs/').removesuffix('.py')
            given, path = path, osp.join(CONFIGS, f'{name}.py')
            if not osp.isfile(path):
                raise LaunchError(f'there is no config {given}{like(given)}')
        return path, _syntax(path)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise LaunchError(f'{path}: the package {package!r} is not installed')
    file = osp.join(osp.dirname(spec.origin), '.mim', 'configs', name)
    if not osp.isfile(file):
        raise LaunchError(
            f'{path}: {package} comes with no such config; expected a path '
            f'within {file.removesuffix(name)}'
        )
    return file, _syntax(file)


def _syntax(file: str) -> bool | None:
    """False for a config with ``_base_``, None where mmengine finds it out.

    mmengine takes an ``import`` for the pure Python syntax, and then refuses
    the mixture.
    """
    try:
        nodes = ast.parse(Path(file).read_bytes()).body
    except (SyntaxError, ValueError):
        return None  # of another format, or for mmengine to refuse
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if '_base_' in map(ast.unparse, targets):
            return False
    return None


@contextmanager
def scope_of(config: Config) -> Iterator[None]:
    """Have names in a config looked up in its ``default_scope``.

    Where that is None, as in pure Python configs, it is the library of the
    model: what the library builds by default has names.
    """
    before = DefaultScope.get_current_instance()
    home = home_of(config.model.get('type'))
    init_default_scope(config.get('default_scope') or home or 'mmengine')
    try:
        yield
    finally:
        if before is not None:
            init_default_scope(before.scope_name)


def build_model(config: Config, device: str = 'cpu') -> BaseModel:
    """Build the model of a config as the runner would, not initialised.

    On the device ``'meta'`` it has shapes but no weights, and costs nothing.
    Of test-time augmentation it is the model inside, whose weights a
    checkpoint has.
    """
    with scope_of(config):
        # Some models change the config that they are built from.
        model = copy.deepcopy(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        if not dist.is_initialized():
            # mmcv's asks for a process group when it is built.
            replace_types(model, ('MMSyncBN',), 'BN')
        with torch.device(device):
            built = MODELS.build(model)
    return built.module if isinstance(built, BaseTTAModel) else built


def library_of(config: Config) -> str:
    """Which of :data:`LIBRARIES` the model of a config is of.

    Its class tells, or else ``default_scope``. A LaunchError if neither does.
    """
    kind = config.model.get('type')
    if isinstance(kind, str):
        with scope_of(config):
            kind = MODELS.get(kind)
    scope = config.get('default_scope')
    found = home_of(kind) or (scope if scope in LIBRARIES else None)
    if found is None:
        raise LaunchError(
            f'this works with models of {", ".join(LIBRARIES)}; the config '
            f'has model.type={config.model.get("type")!r} and '
            f'default_scope={scope!r}'
        )
    return found


def home_of(kind: Any) -> str | None:
    """The library that a class, or one of its bases, comes from."""
    for each in getattr(kind, '__mro__', ()):
        package = each.__module__.partition('.')[0]
        if package in LIBRARIES:
            return package
    return None


def type_name(config: Any) -> str:
    """Name of the class that a config would build."""
    kind = config.get('type') if hasattr(config, 'get') else type(config)
    name = getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2]


def replace_types(node: Any, old: Container[str], new: str) -> int:
    """Replace types by name in nested configs; return how often."""
    if isinstance(node, Mapping):
        count = int(type_name(node) in old)
        if count:
            node['type'] = new
        items = node.values()
        return count + sum(replace_types(item, old, new) for item in items)
    if isinstance(node, (list, tuple)):
        return sum(replace_types(item, old, new) for item in node)
    return 0


def unwrapped(model: Any) -> Any:
    """A model without what several processes wrap it in, if anything."""
    return model.module if is_model_wrapper(model) else model
