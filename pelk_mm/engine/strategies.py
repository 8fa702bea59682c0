"""Sharded training by mmengine's strategies, with checkpoints of all sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.registry import FUNCTIONS, STRATEGIES
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..models.backbones.pelk import PeLKBlock

#: Wrappers leave these in parameter names.
_WRAPPERS = ('_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')


@FUNCTIONS.register_module()
def wrap_pelk_blocks(
    module: nn.Module, recurse: bool, nonwrapped_numel: int
) -> bool:
    """FSDP's ``auto_wrap_policy``: a unit for each block of a PeLK.

    The rest of a model is one unit. Heads must not be units of their own:
    the libraries call their ``loss`` past ``forward``, where FSDP gathers.
    """
    return recurse or isinstance(module, PeLKBlock)


@STRATEGIES.register_module()
class FullStateFSDPStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` that can be resumed, also without a GPU.

    Checkpoints hold whole weights: they load into a plain model, and a run
    goes on with another number of processes. With torch 2.1 and later,
    mmengine 0.10's own cannot be resumed: it hands the parts of the optimizer
    over in the order of torch 2.0, and with several parameter groups it saves
    one too many.

    Args:
        model_wrapper (dict, optional): Config of
            ``MMFullyShardedDataParallel``; ``use_orig_params`` must stay True.
            Default: None.
        **kwargs: As for ``FSDPStrategy``, but ``state_dict_cfg`` is
            ``'full'``.

    Raises:
        ValueError: If it is to shard its checkpoints, or not to keep the
            parameters of the model.
    """

    def __init__(
        self,
        *,
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs,
    ) -> None:
        if state_dict_cfg != 'full':
            raise ValueError(
                'FullStateFSDPStrategy saves whole states: state_dict_cfg '
                f"must be 'full', got {state_dict_cfg!r}; use mmengine's "
                'FSDPStrategy for sharded ones'
            )
        model_wrapper = dict(model_wrapper or {})
        model_wrapper.setdefault('type', 'MMFullyShardedDataParallel')
        if not model_wrapper.setdefault('use_orig_params', True):
            raise ValueError(
                'model_wrapper.use_orig_params must be True: parameter groups '
                'are made of the parameters of the model'
            )
        if not torch.cuda.is_available():
            model_wrapper['device_id'] = 'cpu'
            # What is "offloaded" here would be freed under one's hands.
            whole = dict(offload_to_cpu=False, rank0_only=False)
            optimizer = dict(type='FullOptimStateDictConfig', **whole)
            state_dict_cfg = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', **whole),
                optim_state_dict_config=optimizer,
            )
        super().__init__(
            model_wrapper=model_wrapper,
            state_dict_cfg=state_dict_cfg,
            **kwargs,
        )

    def optim_state_dict(self) -> dict:
        """Whole state of the optimizer by parameter name, on rank 0."""
        wrapper = self.optim_wrapper
        state = FullyShardedDataParallel.optim_state_dict(
            self.model, wrapper.optimizer
        )
        if wrapper.base_param_settings is not None:
            # Where mmengine keeps the learning rate of no group.
            state['base_param_settings'] = wrapper.base_param_settings
        return state

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each rank its part of what :meth:`optim_state_dict` returned.

        A ValueError if it comes from a training without FSDP.
        """
        if any(not isinstance(name, str) for name in state_dict['state']):
            raise ValueError(
                'the checkpoint was saved by a training without FSDP, its '
                'optimizer numbers the parameters; to start from its weights '
                'name it in load_from'
            )
        base = state_dict.pop('base_param_settings', None)
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, self.optim_wrapper.optimizer, state_dict
        )
        if base is not None:
            state['base_param_settings'] = base
        self.optim_wrapper.load_state_dict(state)


def plain_name(name: str) -> str:
    """A parameter's name in the model itself, without FSDP's wrappers."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, '')
    return name


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Give parameters their shapes back where FSDP has cut them to pieces.

    Every rank has to take part. A ValueError if FSDP has made flat ones.
    """
    if not FullyShardedDataParallel.fsdp_modules(model):
        yield
        return
    flat = [
        name for name, _ in model.named_parameters() if '_flat_param' in name
    ]
    if flat:
        raise ValueError(
            f'FSDP has joined the parameters into {flat[0]}, of which no '
            'parameter groups can be made; set use_orig_params=True in '
            'strategy.model_wrapper'
        )
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        yield


#: Strategies that leave a rank with pieces of the parameters, by name.
SHARDING = (
    'FSDPStrategy',
    'FullStateFSDPStrategy',
    'DeepSpeedStrategy',
    'ColossalAIStrategy',
)


def is_sharded(runner: Runner) -> bool:
    """Whether a rank has only pieces of the parameters."""
    strategy = getattr(runner, 'strategy', None)
    return type(strategy).__name__ in SHARDING
