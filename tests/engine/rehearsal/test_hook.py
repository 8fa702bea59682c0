"""A training is tried out on real batches, and then as it was before."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import IterableDataset

from pelk_mm.utils.errors import LaunchError
from tests.helpers.toy_task import TOY_CONFIG, ToyModel

TASKS = ['classification', 'segmentation', 'detection']


@pytest.fixture
def toy() -> Config:
    config = Config.fromstring(TOY_CONFIG, '.py')
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=0)
    config.param_scheduler = None
    config.default_hooks = dict(checkpoint=None)
    return config


@pytest.mark.parametrize('task', TASKS)
def test_right_trainings_pass(task, request, rehearse, told):
    rehearse(request.getfixturevalue(task))
    start, line = told
    assert '--no-rehearsal' in start
    assert 'one training batch (loss ' in line
    assert '2 batches of validation' in line


def fingerprint(runner) -> list:
    """All that an iteration depends on, and what it leaves."""
    tensors = chain(runner.model.parameters(), runner.model.buffers())
    wrapper = runner.optim_wrapper
    return [
        [tensor.tolist() for tensor in tensors],
        [p.grad is None for p in runner.model.parameters()],
        wrapper.state_dict(),
        wrapper._inner_count,
        runner.iter,
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
    ]


class Watch(Hook):
    """What the run is just before and just after the rehearsal."""

    def __init__(self):
        self.prints = []

    def before_train(self, runner):
        self.prints.append(fingerprint(runner))


@pytest.mark.parametrize('task', [*TASKS, 'toy'])
def test_nothing_is_kept(task, request, tmp_path):
    from mmengine.runner import Runner

    from pelk_mm.engine import RehearsalHook

    config = request.getfixturevalue(task)
    config.work_dir = str(tmp_path / 'work')
    config.experiment_name = tmp_path.name
    runner = Runner.from_cfg(config)
    watch = Watch()
    runner.register_hook(watch, 'LOWEST')
    runner.register_hook(RehearsalHook())
    runner.register_hook(watch, 'LOWEST')
    runner.train()
    before, after = watch.prints
    assert before == after


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_a_training_goes_as_without(sampler, tmp_path):
    """Weights after some iterations are equal bit for bit."""
    from mmengine.runner import Runner

    from pelk_mm.engine import RehearsalHook

    weights = []
    for i in range(2):
        config = Config.fromstring(TOY_CONFIG, '.py')
        config.train_dataloader.sampler.type = sampler
        config.work_dir = str(tmp_path / str(i))
        config.experiment_name = f'{tmp_path.name}{i}'
        runner = Runner.from_cfg(config)
        if i:
            runner.register_hook(RehearsalHook())
        runner.train()
        weights.append(runner.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@MODELS.register_module()
class Restless(ToyModel):
    """Changes whatever a model may change while it computes a loss."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.history = [1]
        self.by_name = {'a': [0.5]}
        self.register_buffer('queue', torch.zeros(4))
        self.teacher = nn.Linear(3, 8).requires_grad_(False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, label, mode='tensor', **kwargs):
        self.calls += 1
        self.history.append(self.calls)
        self.by_name['a'].append(random.random() + np.random.rand())
        self.queue = torch.rand(4)
        self.teacher.weight.data.lerp_(self.hidden.weight.data, 0.5)
        self.dropout.p = 0.7
        return super().forward(inputs, label, mode, **kwargs)


def test_what_a_model_changes_is_put_back(toy, rehearse):
    torch.manual_seed(0)
    toy.model.type = 'Restless'
    model = rehearse(toy).model
    assert model.calls == 0 and model.history == [1]
    assert model.by_name == {'a': [0.5]} and model.dropout.p == 0.5
    assert torch.equal(model.queue, torch.zeros(4))
    assert 'queue' in dict(model.named_buffers())
    assert not torch.equal(model.teacher.weight, model.hidden.weight)


def test_pipelines_that_keep_what_they_saw(segmentation, rehearse):
    from mmseg.registry import TRANSFORMS

    class Keeps:
        def __init__(self):
            self.seen = []

        def __call__(self, results):
            self.seen.append(results['img_path'])
            return results

    TRANSFORMS.register_module(name='Keeps', module=Keeps, force=True)
    pipeline = segmentation.train_dataloader.dataset.pipeline
    pipeline.insert(1, dict(type='Keeps'))
    runner = rehearse(segmentation)
    dataset = runner.train_loop.dataloader.dataset
    assert dataset.pipeline.transforms[1].seen == []


def test_parameters_without_a_gradient_are_named(toy, rehearse, told):
    toy.model.unused = True
    rehearse(toy)
    (line,) = [line for line in told if 'gradient' in line]
    assert '2 trainable parameters get no gradient: unused.weight' in line


@MODELS.register_module()
class Nan(ToyModel):
    def forward(self, inputs, label, mode='tensor', **kwargs):
        out = super().forward(inputs, label, mode, **kwargs)
        return dict(loss=out['loss'] * np.nan) if mode == 'loss' else out


def test_a_loss_that_is_no_number_is_a_warning(toy, rehearse, told):
    toy.model.type = 'Nan'
    rehearse(toy)
    assert any('loss of the first batch is nan' in line for line in told)


@MODELS.register_module()
class NoPrediction(ToyModel):
    def forward(self, inputs, label, mode='tensor', **kwargs):
        if mode == 'predict':
            raise ValueError('cannot predict')
        return super().forward(inputs, label, mode, **kwargs)


def test_validation_is_tried_too(toy, rehearse):
    toy.model.type = 'NoPrediction'
    with pytest.raises(ValueError, match='cannot predict'):
        rehearse(toy)


@METRICS.register_module()
class WantsAll(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results += data_samples

    def compute_metrics(self, results) -> dict:
        assert len(results) == 16, 'not all are there'
        return {}


def test_metrics_of_a_part_may_fail(toy, rehearse, told):
    toy.val_evaluator.type = 'WantsAll'
    rehearse(toy)
    (line,) = [line for line in told if 'metrics' in line]
    assert 'on 8 of 16 samples' in line and 'not all are there' in line


def test_metrics_of_all_may_not(toy, rehearse):
    toy.val_evaluator.type = 'WantsAll'
    toy.val_dataloader.dataset.length = 7
    with pytest.raises(LaunchError, match='the metrics of validation fail'):
        rehearse(toy)


def test_metrics_begin_anew(toy, rehearse):
    runner = rehearse(toy)
    assert runner.val_loop.evaluator.metrics[0].results == []


def test_drawing_is_tried_and_leaves_nothing(
    segmentation, rehearse, tmp_path, monkeypatch
):
    from mmseg.visualization import SegLocalVisualizer

    drawn = []
    monkeypatch.setattr(
        SegLocalVisualizer,
        'add_datasample',
        lambda self, name, *_, **__: drawn.append(name),
    )
    segmentation.default_hooks.visualization = dict(
        type='SegVisualizationHook', draw=True, interval=50
    )
    segmentation.visualizer = dict(
        type='SegLocalVisualizer',
        vis_backends=[dict(type='LocalVisBackend')],
        name=tmp_path.name,
    )
    runner = rehearse(segmentation)
    # All of two batches of two; the maintained fork draws the first of each.
    assert len(drawn) in (2, 4)
    assert runner.visualizer._vis_backends
    pictures = [*(tmp_path / 'work').rglob('*.png')]
    assert not pictures


def test_memory_that_runs_out_is_left_to_the_training(
    toy, rehearse, told, monkeypatch
):
    def too_much(*_, **__):
        raise torch.cuda.OutOfMemoryError('2 GiB more')

    monkeypatch.setattr(ToyModel, 'train_step', too_much)
    rehearse(toy)
    assert any('memory of the GPU' in line for line in told)


@DATASETS.register_module()
class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield dict(inputs=torch.rand(3), label=0)


def test_streams_are_not_looked_at(toy, rehearse, told):
    toy.default_hooks.logger = None  # it asks for a length
    toy.train_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=None,
        dataset=dict(type='Stream'),
        collate_fn=dict(type='default_collate'),
    )
    toy.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    rehearse(toy)
    _, line = told
    assert 'training' not in line and '2 batches of validation' in line


@MODELS.register_module()
class TwoSteps(ToyModel):
    """Steps two optimizers by itself, as adversarial networks do."""

    def train_step(self, data, optim_wrapper):
        inputs, label = torch.stack(list(data['inputs'])), data['label']
        log = {}
        for name in ('hidden', 'head'):
            optimizer = optim_wrapper[name]
            with optimizer.optim_context(self):
                loss = self(inputs, label, mode='loss')['loss']
            if name == 'head':
                optimizer.update_params(loss)
            else:
                optimizer.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            log[f'loss_{name}'] = loss
        return log


@MODELS.register_module()
class TwoOptimizers:
    """The constructor of a pair of optimizer wrappers."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        from mmengine.optim import OptimWrapper, OptimWrapperDict

        parts = dict(hidden=model.hidden, head=model.head)
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.SGD(part.parameters(), 1.0))
                for name, part in parts.items()
            }
        )


def test_several_optimizers_do_not_step(toy, rehearse):
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        name='TwoOptimizers', module=TwoOptimizers, force=True
    )
    toy.model.type = 'TwoSteps'
    toy.optim_wrapper = dict(constructor='TwoOptimizers')
    torch.manual_seed(0)
    runner = rehearse(toy)
    assert all(p.grad is None for p in runner.model.parameters())
    counts = [w._inner_count for w in runner.optim_wrapper.values()]
    assert counts == [0, 0]


def test_unknown_failures_keep_their_error(toy, rehearse, monkeypatch):
    def fails(self, *_, **__):
        raise ZeroDivisionError('a defect')

    monkeypatch.setattr(ToyModel, 'forward', fails)
    with pytest.raises(ZeroDivisionError, match='a defect'):
        rehearse(toy)


def test_an_own_data_set(toy, rehearse, told):
    """Its samples are whatever they are."""

    @DATASETS.register_module(force=True)
    class Plain(BaseDataset):
        def load_data_list(self):
            return [dict(inputs=torch.rand(3), label=1)] * 3

    toy.train_dataloader.dataset = dict(type='Plain')
    rehearse(toy)
    assert '3 samples, one training batch' in told[-1]


def test_a_schedule_that_ends_too_late_is_told(toy, rehearse, told):
    toy.train_cfg.max_epochs = 1
    toy.train_dataloader.sampler.type = 'DefaultSampler'
    toy.param_scheduler = dict(type='CosineAnnealingLR', T_max=90, end=90)
    rehearse(toy)
    assert any('CosineAnnealingLR at epoch 90' in line for line in told)


def test_the_best_by_a_metric_that_is_none(toy, rehearse):
    toy.default_hooks.checkpoint = dict(type='CheckpointHook', save_best='mAP')
    with pytest.raises(LaunchError, match="save_best='mAP' .* gives accuracy"):
        rehearse(toy)
    for name in ('accuracy', 'auto', ['accuracy']):
        toy.default_hooks.checkpoint.save_best = name
        rehearse(toy)
