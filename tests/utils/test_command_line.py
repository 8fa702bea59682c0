"""Wrong input ends a tool in one line; a defect keeps its traceback."""

import argparse
import logging
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict, DictAction
from mmengine.registry import MODELS, init_default_scope
from torch.nn.parallel import DistributedDataParallel

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.utils.command_line import (
    TRACEBACK,
    ConfigOptions,
    command,
    parse_value,
)
from pelk_mm.utils.errors import LaunchError, explain, from_config
from tests.helpers.toy_task import TOY_CONFIG


@MODELS.register_module()
class Broken:
    """Fails in several ways."""

    def __init__(self, how: type[Exception], text: str = 'is wrong') -> None:
        raise how(text)


def building(**config) -> Exception:
    with pytest.raises(Exception) as error:
        MODELS.build(config)
    return error.value


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='PeLK', arch='tinny'), "PeLK: unknown arch 'tinny'"),
        (
            dict(type='PeLK', out_indices=7),
            'PeLK: out_indices must be -4 to 3, got 7',
        ),
        (
            dict(type='PeLKK'),
            'there is no PeLKK in the registry '
            "mmengine::model (did you mean 'PeLK'?)",
        ),
        (
            dict(type='PeLK', drop_pth_rate=1),
            'PeLK has no argument '
            "'drop_pth_rate' (did you mean 'drop_path_rate'?); it has arch, ",
        ),
        (dict(type='Broken', how=KeyError), 'Broken: KeyError: is wrong'),
        (dict(type='Broken', how=ValueError, text=''), 'Broken: ValueError: '),
        (dict(kind='PeLK'), 'must contain the key "type"'),
        (dict(type=3), 'type must be a str'),
    ],
)
def test_explanations(config, message):
    error = building(**config)
    assert from_config(error)
    assert message in explain(error)


def test_explanation_of_a_part_names_the_part():
    init_default_scope('mmpretrain')
    error = building(
        type='ImageClassifier', backbone=dict(type='PeLK', arch='tinny')
    )
    assert explain(error).startswith('PeLK: unknown arch')


def ends(error: Exception, *expected, **kwargs) -> str:
    with pytest.raises(SystemExit) as end, command(*expected, **kwargs):
        raise error
    assert isinstance(end.value.code, str)
    return end.value.code


def test_what_is_raised_for_people_is_all_they_see():
    assert ends(LaunchError('say why')) == 'error: say why'
    assert ends(OSError('no disk'), OSError) == (
        f'error: no disk ({TRACEBACK}=1 shows where)'
    )
    assert ends(
        RuntimeError('has none'), RuntimeError, about='x.pth'
    ).startswith('error: x.pth: has none')
    assert ends(
        RuntimeError('x.pth has none'), RuntimeError, about='x.pth'
    ).startswith('error: x.pth has none')


def test_defects_are_not_hidden():
    for error in (RuntimeError('shapes'), IndexError(3), AttributeError('x')):
        with pytest.raises(type(error)), command(OSError):
            raise error
    # Not even while something is built.
    with pytest.raises(AttributeError), command():
        MODELS.build(dict(type='Broken', how=AttributeError))


def test_the_traceback_on_demand(monkeypatch, capsys):
    monkeypatch.setenv(TRACEBACK, '1')
    with pytest.raises(SystemExit) as end, command():
        MODELS.build(dict(type='Broken', how=ValueError))
    assert end.value.code == (
        'error: the config cannot be built: Broken: is wrong'
    )
    assert 'Traceback' in capsys.readouterr().err


def test_nothing_runs_code_in_a_command(tmp_path):
    from tests.helpers.unsafe_checkpoints import detonate, poison

    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    poison(path, marker)
    with pytest.raises(Exception, match='(?i)weights'), command():
        torch.load(path, weights_only=False)
    detonate(path, marker)


def gloo_threads() -> int:
    count = 0
    for name in Path('/proc/self/task').glob('*/comm'):
        with suppress(OSError):  # it has ended meanwhile
            count += 'gloo' in name.read_text()
    return count


@pytest.mark.skipif(
    not Path('/proc/self/task').is_dir(), reason='lists threads as Linux does'
)
def test_no_thread_of_a_process_group_is_left(tmp_path):
    before = gloo_threads()
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    with command():
        torch.distributed.init_process_group(
            'gloo', store=store, rank=0, world_size=1
        )
        model = DistributedDataParallel(torch.nn.Linear(1, 1))
        # As a runner and its hooks hold each other.
        model.hook = [model]
        left = weakref.ref(model)
        del model
        assert gloo_threads() > before
    assert left() is None
    # Linux lists a thread for a moment after it was joined.
    end = time.monotonic() + 10
    while gloo_threads() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert gloo_threads() == before


def test_config_options(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    args = parser.parse_args(['--cfg-options', 'a.b=[1,2]', 'c=x=y'])
    assert args.cfg_options == {'a.b': [1, 2], 'c': 'x=y'}
    for wrong, message in (
        ('a.b', "expected KEY=VALUE, got 'a.b'"),
        ('=3', "expected KEY=VALUE, got '=3'"),
        ('a=[x(y,z', 'a=[x(y,z: the brackets are not closed'),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(['--cfg-options', wrong, 'c=3'])
        assert message in capsys.readouterr().err


#: Each as mmengine's DictAction reads it.
AS_EVER = (
    ('5', 5),
    ('-1', -1),
    ('1e-3', 0.001),
    ('True', True),
    ('false', False),
    ('None', None),
    ('none', 'none'),
    ('', ''),
    ('x=y', 'x=y'),
    ('PeLK', 'PeLK'),
    ('a,b', ['a', 'b']),
    ('0,1,2,3', [0, 1, 2, 3]),
    ('1, 2', [1, 2]),
    ('[a,b]', ['a', 'b']),
    ('[ a, b ]', ['a', 'b']),
    ('(1,2)', (1, 2)),
    ('(1)', (1,)),
    ('[]', []),
    ('()', ()),
    ('a,', ['a']),
    ('a,,b', ['a', '', 'b']),
    ('[(1,2),[a,b],c]', [(1, 2), ['a', 'b'], 'c']),
    ('((1,2),)', ((1, 2),)),
    ('"[a,b]"', ['a', 'b']),
    ("'(1,2)'", (1, 2)),
    ('"text"', 'text'),
    ("person's,dog's", ["person's", "dog's"]),
    ('data/a(1)', 'data/a(1)'),
    ('[a', '[a'),
    ('a/x.json,b/y.json', ['a/x.json', 'b/y.json']),
    ('/a/x.json,/b/y.json', ['/a/x.json', '/b/y.json']),
    ('s3://a/b', 's3://a/b'),
)


@pytest.mark.parametrize('typed, value', AS_EVER)
def test_values_that_mean_what_they_meant(typed, value):
    assert repr(parse_value(typed)) == repr(value)
    assert repr(DictAction._parse_iterable(typed)) == repr(value)


@pytest.mark.parametrize(
    'typed, value',
    [
        ('traffic light', 'traffic light'),
        ('traffic light,car', ['traffic light', 'car']),
        ('[traffic light, fire hydrant]', ['traffic light', 'fire hydrant']),
        (' a b ', 'a b'),
        ('/data/my set/', '/data/my set/'),
        ('/data/a,b/', '/data/a,b/'),
        ('./a,b', './a,b'),
        ('~/a, b,c', '~/a, b,c'),
        ('s3://a,b', 's3://a,b'),
        ('/a/b, /c', ['/a/b', '/c']),
        ('"a,b"', 'a,b'),
        ("'a, b'", 'a, b'),
        ('"1"', '1'),
        ('["1", 1]', ['1', 1]),
        ('["a,b",c]', ['a,b', 'c']),
        ('"it\'s","a)"', ["it's", 'a)']),
        ('("a, b", "/data/c,d")', ('a, b', '/data/c,d')),
        ('(800, 600), (3, 2)', [(800, 600), (3, 2)]),
        ('(a) b (c)', '(a) b (c)'),
        ('(traffic light,)', ('traffic light',)),
    ],
)
def test_text_stays_as_it_was_typed(typed, value):
    assert repr(parse_value(typed)) == repr(value)


def test_a_comma_in_a_path_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed in ('data/a,b', 'data/a,b/new.json', 'data/a,b/c,d'):
        assert isinstance(parse_value(typed), list)
    (tmp_path / 'data' / 'a,b').mkdir(parents=True)
    for typed in ('data/a,b', 'data/a,b/new.json', 'data/a,b/c,d'):
        assert parse_value(typed) == typed
    assert parse_value('data/x,data/y') == ['data/x', 'data/y']
    # What has no slash does not depend on the folder.
    (tmp_path / 'a,b').touch()
    assert parse_value('a,b') == ['a', 'b']


@pytest.mark.parametrize(
    'options, message',
    [
        (['model.type=ToyModell'], "did you mean 'ToyModel'"),
        (['model.width=3'], "ToyModel has no argument 'width'"),
        (['optim_wrapper.optimizer.type=AddamW'], "did you mean 'AdamW'"),
        (['optim_wrapper.optimizer.lr=x'], 'AdamW: '),
        (['train_dataloader.dataset.lenght=3'], 'lenght'),
        (['param_scheduler.type=PolyLRR'], "did you mean 'PolyLR'"),
        (
            [
                'default_hooks.sparse.type=DynamicSparsityHook',
                'default_hooks.sparse.sparsity=2',
            ],
            'DynamicSparsityHook: sparsity must be 0 to 1, got 2',
        ),
        (
            [
                'default_hooks.sparse.type=DynamicSparsityHook',
                'default_hooks.sparse.init=snap',
            ],
            "did you mean 'snip'",
        ),
        (
            ['optim_wrapper.constructor=LayerDecayOptimWrapperConstructor'],
            'LayerDecayOptimWrapperConstructor: paramwise_cfg needs a decay_',
        ),
        (
            [
                'optim_wrapper.constructor=LayerDecayOptimWrapperConstructor',
                'optim_wrapper.paramwise_cfg.decay_rat=1',
            ],
            "did you mean 'decay_rate'",
        ),
        (['val_evaluator.type=ToyAcuracy'], "did you mean 'ToyAccuracy'"),
    ],
)
def test_training_with_a_wrong_config_ends_in_one_line(
    options, message, tmp_path, run_tool, monkeypatch
):
    # The stream that a logger of an earlier test writes to is closed.
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    path = tmp_path / 'toy.py'
    path.write_text(TOY_CONFIG)
    status, _, stderr = run_tool(
        'train.py',
        path,
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *options,
    )
    assert status == 1
    errors = [line for line in stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 1 and message in errors[0], stderr
    assert 'Traceback' not in stderr


@pytest.mark.parametrize(
    'options, times',
    [
        ([], 1),
        (['--no-rehearsal'], 0),
        (['--cfg-options', 'rehearse=False'], 0),
    ],
)
@pytest.mark.parametrize('by_itself', [False, True])
def test_a_training_is_rehearsed_once_unless_told(
    options, times, by_itself, tmp_path, run_tool, monkeypatch
):
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    path = tmp_path / 'toy.py'
    hook = "custom_hooks = [dict(type='RehearsalHook')]\n"
    path.write_text(TOY_CONFIG + hook * by_itself)
    work_dir = tmp_path / 'work'
    run_tool('train.py', path, '--work-dir', work_dir, *options)
    (log,) = work_dir.glob('*/*.log')
    assert log.read_text().count('rehearsal in') == times


def test_training_that_fails_keeps_its_traceback(
    tmp_path, run_tool, monkeypatch
):
    from tests.helpers.toy_task import ToyModel

    def forward(*args, **kwargs):
        raise ValueError('a defect')

    monkeypatch.setattr(ToyModel, 'forward', forward)
    path = tmp_path / 'toy.py'
    path.write_text(TOY_CONFIG)
    with pytest.raises(ValueError, match='a defect'):
        run_tool('train.py', path, '--work-dir', tmp_path / 'work')


def test_config_dicts_too():
    error = building(**ConfigDict(type='PeLK', arch=dict(depths=[1])))
    assert "missing ['channels', 'kernel_sizes']" in explain(error)
