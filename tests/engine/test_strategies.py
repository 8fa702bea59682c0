"""FSDP's side of names and shapes; the training is an integration test."""

import pytest
from torch import nn

from pelk_mm.engine.strategies import (
    FullStateFSDPStrategy,
    plain_name,
    whole_parameters,
)


@pytest.mark.parametrize(
    'name',
    [
        'backbone.stages.0.blocks.1.gamma',
        '_fsdp_wrapped_module.backbone.stages.0.blocks.1.gamma',
        'backbone.stages.0.blocks.1._fsdp_wrapped_module.gamma',
        'backbone.stages.0._checkpoint_wrapped_module.blocks.1.gamma',
    ],
)
def test_plain_name(name):
    assert plain_name(name) == 'backbone.stages.0.blocks.1.gamma'


def test_other_models_are_left_alone():
    with whole_parameters(nn.Linear(2, 3)):
        pass


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (dict(state_dict_cfg='local'), "must be 'full', got 'local'"),
        (dict(model_wrapper=dict(use_orig_params=False)), 'must be True'),
    ],
)
def test_fsdp_refuses(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        FullStateFSDPStrategy(**arguments)


def test_fsdp_does_not_take_an_optimizer_that_counts():
    strategy = object.__new__(FullStateFSDPStrategy)
    with pytest.raises(ValueError, match='without FSDP.*load_from'):
        strategy.load_optim_state_dict(dict(state={0: {}}, param_groups=[]))
