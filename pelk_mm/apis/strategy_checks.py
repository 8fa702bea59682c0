"""What mmengine's strategies cannot do of what a config asks for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from ..engine.strategies import SHARDING
from ..utils.config import type_name
from ..utils.errors import LaunchError

#: Hooks that need the parameters themselves, not a rank's pieces of them.
_WHOLE_HOOKS = ('DynamicSparsityHook', 'EMAHook')


def check_strategy(config: Config) -> None:
    """A LaunchError where a strategy would not do what the config says."""
    kind = type_name(config.strategy)
    if config.get('runner_type') != 'FlexibleRunner':
        raise LaunchError(
            f"strategy={kind} needs runner_type='FlexibleRunner' in the config"
        )
    if kind not in SHARDING:
        return
    hooks = [type_name(hook) for hook in config.get('custom_hooks') or ()]
    for name in _WHOLE_HOOKS:
        if name in hooks:
            raise LaunchError(
                f'{name} needs whole parameters, and {kind} shards them: '
                'remove it from custom_hooks, or train without a strategy'
            )
    hook = type_name(config.default_hooks.get('checkpoint', {}))
    if kind == 'DeepSpeedStrategy':
        _check_deepspeed()
        if hook == 'SafeCheckpointHook':
            raise LaunchError(
                'DeepSpeed saves its checkpoints itself, as folders; '
                "use default_hooks.checkpoint.type='CheckpointHook'"
            )
    elif kind == 'FSDPStrategy' and hook == 'SafeCheckpointHook':
        raise LaunchError(
            "use strategy.type='FullStateFSDPStrategy': mmengine 0.10's "
            'FSDPStrategy cannot be resumed with torch 2.1 or later'
        )


def _check_deepspeed() -> None:
    spec = find_spec('deepspeed')
    if spec is None:
        raise LaunchError(
            'DeepSpeedStrategy needs DeepSpeed, which is not '
            'installed: pip install deepspeed==0.16.9'
        )
    if not Path(spec.origin).parent.joinpath('runtime/fp16/onebit').is_dir():
        raise LaunchError(
            'the installed DeepSpeed is too new for mmengine 0.10, which '
            'needs its 1-bit optimizers: pip install deepspeed==0.16.9'
        )
