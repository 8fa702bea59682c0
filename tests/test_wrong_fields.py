"""Fields of configs with wrong values: the error names the field.

Every field of PeLK, the sparsity hook and the layer decay is given values of
every kind. Either it is taken, or a TypeError or ValueError of this project
says which field is wrong; nothing of torch or the libraries comes to light.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pelk_mm.engine import (
    DynamicSparsityHook,
    LayerDecayOptimWrapperConstructor,
)
from pelk_mm.models import PeLK
from tests.conftest import ROOT
from tests.helpers.models import ARCH

FEW, MANY = 100, 5000

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 20),
    st.integers(),
    st.just(10**400),
    st.just(-(10**400)),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from(
        [
            '3',
            'tiny',
            'BN',
            'Pretrained',
            'nan',
            object(),
            PeLK,
            1j,
            np.float32(0.5),
            np.int64(2),
            np.nan,
            np.array([1, 2]),
            torch.tensor(1.0),
        ]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner, inner, inner),
        st.dictionaries(
            st.one_of(
                st.sampled_from(
                    [
                        'type',
                        'depths',
                        'channels',
                        'kernel_sizes',
                        'eps',
                        'checkpoint',
                        'lr_mult',
                        'momentum',
                    ]
                ),
                scalars.filter(lambda value: isinstance(value, (int, str))),
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


def check(
    build: Callable, value: object, field: str, names: tuple[str, ...] = ()
) -> None:
    """Build, or have an error that names the field or a part of it."""
    try:
        build(value)
    except (TypeError, ValueError) as error:
        message = str(error)
        assert any(name in message for name in (field, *names)), message
        # The value itself may be long.
        assert len(message) < 1000 + len(repr(value))
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        assert where.startswith(str(ROOT / 'pelk_mm')), (
            f'{message} comes from {where}'
        )


FIELDS = (
    'arch',
    'in_channels',
    'small_kernel',
    'conv_ratio',
    'pos_embed',
    'use_grn',
    'norm_cfg',
    'drop_path_rate',
    'layer_scale_init_value',
    'out_indices',
    'frozen_stages',
    'gap_before_final_norm',
    'with_cp',
    'deploy',
    'backend',
    'init_cfg',
)


def build_pelk(**fields) -> None:
    with torch.device('meta'):
        PeLK(**{'arch': ARCH, **fields})


def check_pelk(field: str, value: object) -> None:
    check(lambda value: build_pelk(**{field: value}), value, field)


def check_arch(field: str, value: object, place: int | None) -> None:
    if place is not None:
        # One entry of four.
        value = [*ARCH[field][:place], value, *ARCH[field][place + 1 :]]
    arch = {**ARCH, field: value}
    # A width that fits nothing, a kernel too small for its centre or its
    # parallel kernel, and a size that no machine holds say so themselves.
    check(
        lambda arch: build_pelk(arch=arch),
        arch,
        field,
        ('arch', 'conv_ratio', 'small_kernel'),
    )


def test_the_list_of_fields_is_whole():
    import inspect

    assert set(FIELDS) == set(inspect.signature(PeLK).parameters)


@settings(max_examples=FEW)
@given(field=st.sampled_from(FIELDS), value=values)
@example('arch', 'tinny')
@example('out_indices', [[0]])
@example('norm_cfg', dict(type='BN', eps='small'))
@example('norm_cfg', dict(type='BN', eps=float('nan')))
@example('norm_cfg', dict(type='BN', momentum=[0.1]))
@example('norm_cfg', dict(type='BN', num_features=3))
@example('norm_cfg', dict(type='BN', track_running_stats=False))
@example('norm_cfg', dict(type='no norm'))
@example('init_cfg', dict(type='Pretrained'))
@example('init_cfg', dict(type='Pretrained', checkpoint=3))
@example('init_cfg', [dict(type='Pretrained', checkpoint='a')] * 2)
@example('layer_scale_init_value', 1e300)
@example('backend', ['cpp'])
def test_pelk(field, value):
    check_pelk(field, value)


@settings(max_examples=FEW // 2)
@given(field=st.sampled_from(list(ARCH)), value=values)
@example('depths', [10**9] * 4)
def test_arch(field, value):
    check_arch(field, value, None)


@settings(max_examples=FEW // 2)
@given(
    field=st.sampled_from(['depths', 'channels', 'kernel_sizes']),
    # Not too large: blocks are built one by one.
    value=scalars.filter(
        lambda value: not (type(value) is int and 100 < value < 10**7)
    ),
    place=st.integers(0, 3),
)
def test_entries_of_arch(field, value, place):
    check_arch(field, value, place)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(arch='tinny'), "did you mean 'tiny'"),
        (dict(arch={**ARCH, 'depth': 1}), "unknown \\['depth'\\].*'depths'"),
        (dict(backend='ccp'), "did you mean 'cpp'"),
        (dict(out_indices='0'), "out_indices must be .* got '0'"),
    ],
)
def test_slips_of_the_keyboard(fields, message):
    with pytest.raises(
        ValueError if 'out_indices' not in fields else TypeError, match=message
    ):
        build_pelk(**fields)


HOOK = dict(
    sparsity=0.4,
    init='snip',
    prune_rate=0.5,
    min_prune_rate=0.005,
    update_interval=2000,
    growth='random',
    end=None,
    include=('a',),
    exclude=(),
    seed=0,
    redraw=False,
)


def check_hook(field: str, value: object) -> None:
    check(
        lambda value: DynamicSparsityHook(**{**HOOK, field: value}),
        value,
        field,
    )


@settings(max_examples=FEW)
@given(field=st.sampled_from(list(HOOK)), value=values)
@example('include', 5)
@example('include', [1])
@example('include', '(')
@example('seed', 2**70)
@example('init', 'snap')
def test_dynamic_sparsity(field, value):
    check_hook(field, value)


DECAY = (
    'decay_rate',
    'decay_type',
    'num_layers',
    'custom_keys',
    'norm_decay_mult',
    'bias_decay_mult',
    'flat_decay_mult',
    'scale_lr_by_cell_area',
)


class Backbone(torch.nn.Linear):
    """Knows its depth, of which there is one."""

    def get_layer_depth(self, param_name: str, prefix: str = ''):
        return 0, 2


def build_groups(paramwise: object, optimizer: object) -> None:
    constructor = LayerDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=optimizer), paramwise
    )
    groups = constructor.make_groups(Backbone(1, 1))
    assert all(np.isfinite(group['lr']) for group in groups)


def check_decay(field: str, value: object) -> None:
    check(
        lambda value: build_groups(
            {'decay_rate': 0.9, field: value},
            dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ),
        value,
        field,
    )


@settings(max_examples=FEW)
@given(field=st.sampled_from(DECAY), value=values)
@example('custom_keys', {3: dict(lr_mult=1)})
@example('custom_keys', dict(weight=dict(lr_mult=float('inf'))))
@example('decay_rate', 1e-320)
def test_layer_decay(field, value):
    check_decay(field, value)


@settings(max_examples=FEW // 4)
@given(value=values)
def test_paramwise_and_optimizer(value):
    check(
        lambda value: build_groups(value, dict(type='AdamW', lr=1e-4)),
        value,
        'paramwise_cfg',
        ('decay_rate',),
    )
    check(
        lambda value: build_groups(dict(decay_rate=0.9), value), value, 'optim'
    )
    for field in ('lr', 'weight_decay'):
        check(
            lambda value, field=field: build_groups(
                dict(decay_rate=0.9),
                {'type': 'AdamW', 'lr': 1.0, field: value},
            ),
            value,
            field,
        )


@pytest.mark.slow
@settings(max_examples=MANY)
@given(
    field=st.sampled_from(
        [
            *((check_pelk, field) for field in FIELDS),
            *((check_hook, field) for field in HOOK),
            *((check_decay, field) for field in DECAY),
        ]
    ),
    value=values,
)
def test_many_values(field, value):
    check_field, name = field
    check_field(name, value)
