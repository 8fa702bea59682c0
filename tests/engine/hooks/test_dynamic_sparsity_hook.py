"""The hook in whole training runs."""

import copy
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.dataset import InfiniteSampler, default_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch before 2.6
    from torch.distributed._composable.fsdp import fully_shard

from pelk_mm.engine.hooks import DynamicSparsityHook
from pelk_mm.engine.sparsity.masks import erk_densities
from pelk_mm.engine.sparsity.state import STATE_KEY, unpack_masks
from tests.helpers import forked
from tests.helpers.sparse_task import (
    SparseNet,
    differences,
    in_two_processes,
    load,
    make_runner,
    samples,
    sparsity_hook,
    straight_and_resumed,
    train,
)

BACKBONE = ['backbone.0.weight', 'backbone.3.weight', 'backbone.5.weight']


class Watch(Hook):
    """Looks at masks and weights when every other hook is done."""

    priority = 'LOWEST'

    def __init__(self):
        self.counts = []
        self.steps = []

    def after_train_iter(self, runner, *args, **kwargs):
        hook = sparsity_hook(runner)
        masks = hook.enforcer.masks
        models = [runner.model]
        models += [
            h.ema_model.module for h in runner.hooks if hasattr(h, 'ema_model')
        ]
        for model in models:
            params = dict(model.named_parameters())
            for name, mask in masks.items():
                assert (params[name][~mask] == 0).all(), name
        for param, state in runner.optim_wrapper.optimizer.state.items():
            name = next(
                n for n, p in runner.model.named_parameters() if p is param
            )
            for value in state.values():
                if name in masks and value.shape == param.shape:
                    assert (value[~masks[name]] == 0).all(), name
        self.counts.append({n: int(m.sum()) for n, m in masks.items()})
        self.steps.append(hook.step)


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are too small for threads to do anything but wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def messages(runner):
    """The log of a run."""
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


def first_batch():
    """What a run trains on first: four samples in the sampler's order."""
    data = samples()
    sampler = InfiniteSampler(data, seed=0)
    return default_collate([data[i] for i in itertools.islice(sampler, 4)])


def updates(runner):
    return [
        int(step)
        for step in re.findall(r'step (\d+), dropped', messages(runner))
    ]


# Training -------------------------------------------------------------------


def test_registered_for_every_scope():
    assert HOOKS.get('DynamicSparsityHook') is DynamicSparsityHook


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='AdamW', lr=1e-2, weight_decay=0.05),
        dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-2),
    ],
)
def test_zeros_stay_through_training(tmp_path, optimizer):
    watch = Watch()
    runner = train(
        tmp_path,
        12,
        dict(sparsity=0.4),
        optimizer=optimizer,
        wrapper=dict(clip_grad=dict(max_norm=0.5)),
        hooks=[watch, dict(type='EMAHook', momentum=0.2)],
    )
    hook = sparsity_hook(runner)
    assert list(hook.enforcer.masks) == BACKBONE
    shapes = {n: m.shape for n, m in hook.enforcer.masks.items()}
    wanted = erk_densities(shapes, 0.6)
    for counts in watch.counts:
        for name, count in counts.items():
            # To one weight per layer, at every iteration.
            assert count == round(wanted[name] * shapes[name].numel())
    assert updates(runner) == [3, 6, 9]
    assert (runner.model.head.weight != 0).all()


def test_the_log_says_what_happened(tmp_path):
    runner = train(tmp_path, 4, dict(init='uniform', end=10))
    text = messages(runner)
    assert (
        'masks drawn by uniform; density 0.6002 over 3 weights, most '
        'dense' in text
    )
    assert re.search(
        r'step 3, dropped and grew 39\.\d\d% of the non-zero weights \(prune '
        r'rate 0\.3980\); density 0\.6002 over 3 weights, most dense '
        r'backbone\.\d\.weight 0\.60\d\d, least dense backbone',
        text,
    )


def test_steps_are_those_of_the_optimizer(tmp_path):
    watch = Watch()
    runner = train(
        tmp_path,
        12,
        dict(update_interval=2),
        wrapper=dict(accumulative_counts=2),
        hooks=[watch],
    )
    assert watch.steps == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    # Six steps in all: none of the masks moves at the last one.
    assert updates(runner) == [2, 4]


def test_end_stops_the_masks(tmp_path):
    runner = train(tmp_path, 12, dict(end=7))
    assert updates(runner) == [3, 6]
    assert sparsity_hook(runner).current_prune_rate == pytest.approx(0.005)


def test_no_interval_keeps_the_masks(tmp_path):
    runner = train(tmp_path, 6, dict(update_interval=None))
    assert updates(runner) == []


def test_skipped_steps_do_not_count(tmp_path):
    watch = Watch()
    runner = train(
        tmp_path,
        9,
        dict(growth='momentum'),
        model=SparseNet(overflow_at=[0, 4]),
        wrapper=dict(type='CPUScalerOptimWrapper'),
        hooks=[watch],
    )
    assert watch.steps == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert updates(runner) == [3, 6]
    # 2 ** 10, halved twice.
    assert runner.optim_wrapper.loss_scaler.get_scale() == 256
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_clipping_sees_live_weights_only(tmp_path):
    class Norms(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            self.seen = runner.message_hub.get_scalar(
                'train/grad_norm'
            ).current()

    hook, norms = dict(init='uniform', sparsity=0.9), Norms()
    clip = dict(clip_grad=dict(max_norm=1e9))
    runner = make_runner(tmp_path, 1, hook, wrapper=clip, hooks=[norms])
    batch = first_batch()
    runner.train()

    model = SparseNet()
    masks = sparsity_hook(runner).enforcer.masks
    torch.manual_seed(0)
    fresh = make_runner(tmp_path / 'b', 1).model
    model.load_state_dict(fresh.state_dict())
    for name, param in model.named_parameters():
        if name in masks:
            param.data *= masks[name]
    model(**batch)['loss'].backward()
    for name, param in model.named_parameters():
        if name in masks:
            param.grad *= masks[name]
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norms.seen == pytest.approx(float(norm), rel=1e-4)


def test_snip_uses_the_first_batch_and_trains_on_it_unchanged(tmp_path):
    """Its densities, computed by hand; the run sees the data as without."""
    runner = make_runner(tmp_path, 1, dict(init='snip', sparsity=0.4))
    batch = first_batch()
    model = copy.deepcopy(runner.model)
    seen = []
    forward = runner.model.forward

    def spy(inputs, **kwargs):
        seen.append(inputs.clone())
        return forward(inputs=inputs, **kwargs)

    runner.model.forward = spy
    runner.train()
    assert len(seen) == 2
    assert all(inputs.equal(batch['inputs']) for inputs in seen)
    assert runner.model.backbone[1].num_batches_tracked == 1

    model(**batch)['loss'].backward()
    params = dict(model.named_parameters())
    scores = {n: (params[n] * params[n].grad).abs() for n in BACKBONE}
    flat = torch.cat([s.flatten() for s in scores.values()])
    threshold = flat.sort(descending=True).values[round(0.6 * len(flat)) - 1]
    for name, mask in sparsity_hook(runner).enforcer.masks.items():
        assert mask.sum() == (scores[name] >= threshold).sum()


def test_seed_and_scope(tmp_path):
    masks = [
        sparsity_hook(
            train(
                tmp_path / str(i),
                1,
                dict(init='uniform', seed=seed, include='.', exclude=['5']),
            )
        ).enforcer.masks
        for i, seed in enumerate((0, 0, 1))
    ]
    assert list(masks[0]) == [*BACKBONE[:2], 'head.weight']
    assert differences(masks[0], masks[1]) == []
    assert len(differences(masks[0], masks[2])) == 3


def test_frozen_weights_stay_as_they_are(tmp_path):
    model = SparseNet()
    model.backbone[0].requires_grad_(False)
    before = model.backbone[0].weight.clone()
    runner = train(tmp_path, 5, dict(), model=model)
    assert list(sparsity_hook(runner).enforcer.masks) == BACKBONE[1:]
    assert model.backbone[0].weight.equal(before)
    assert '1 frozen weights left dense' in messages(runner)


def test_everything_frozen_is_refused(tmp_path):
    model = SparseNet()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match='all 3 weights matching'):
        train(tmp_path, 5, dict(), model=model)


def test_optimizer_wrapper_dict(tmp_path):
    class Two(SparseNet):
        def train_step(self, data, optim_wrapper):
            loss = self(**data)['loss']
            for wrapper in optim_wrapper.values():
                wrapper.zero_grad()
            loss.backward()
            for wrapper in optim_wrapper.values():
                wrapper.step()
            return dict(loss=loss)

    def run(folder, **hook):
        model = Two()
        wrappers = OptimWrapperDict(
            **{
                name: OptimWrapper(
                    torch.optim.SGD(getattr(model, name).parameters(), lr=0.1)
                )
                for name in ('backbone', 'head')
            }
        )
        runner = make_runner(folder, 5, hook, model=model)
        runner.optim_wrapper = wrappers
        runner.train()
        return runner

    runner = run(tmp_path / 'a', include='.')
    assert updates(runner) == [3]
    for name, mask in sparsity_hook(runner).enforcer.masks.items():
        assert (runner.model.get_parameter(name)[~mask] == 0).all()
    with pytest.raises(ValueError, match='needs one loss'):
        run(tmp_path / 'b', init='snip')


# Resuming -------------------------------------------------------------------


@pytest.mark.parametrize(
    'hook, kwargs',
    [
        (dict(init='snip', update_interval=5), {}),
        (
            dict(init='erk', update_interval=6, growth='momentum'),
            dict(wrapper=dict(type='CPUScalerOptimWrapper')),
        ),
    ],
)
def test_resumed_is_straight_to_the_bit(tmp_path, hook, kwargs):
    """Masks move after the resumption, and for SNIP at the very save."""
    runner = straight_and_resumed(str(tmp_path), hook, **kwargs)
    # Runs that start within a second of each other share a log.
    assert len({step for step in updates(runner) if step > 20}) == 3
    straight = load(tmp_path / 'straight', 40)
    resumed = load(tmp_path / 'resumed', 40)
    for key in ('state_dict', 'ema_state_dict', 'optimizer', STATE_KEY):
        assert differences(straight[key], resumed[key], key) == []
    halfway = load(tmp_path / 'straight', 20)
    assert bool(halfway[STATE_KEY]['momentum']) == (
        hook.get('growth') == 'momentum'
    )
    moved = differences(
        unpack_masks(halfway[STATE_KEY]), unpack_masks(straight[STATE_KEY])
    )
    assert len(moved) == 3


def _two_process_run(folder):
    """Both ranks note what they hold at the end."""
    runner = straight_and_resumed(
        folder, dict(init='snip', update_interval=5), distributed=True
    )
    hook = sparsity_hook(runner)
    torch.save(
        dict(
            masks=hook.enforcer.masks,
            weights=dict(runner.model.module.named_parameters()),
        ),
        f'{folder}/rank{dist.get_rank()}.pth',
    )

    # A rank that went astray is brought back to rank 0's masks.
    if dist.get_rank() == 1:
        mask = hook.enforcer.masks[BACKBONE[2]]
        mask[:] = mask.flip(0)
    hook.enforcer.attach()
    torch.save(hook.enforcer.masks, f'{folder}/healed{dist.get_rank()}.pth')

    # Shards cannot be masked.
    runner.model = fully_shard(SparseNet(), mesh=init_device_mesh('cpu', (2,)))
    with pytest.raises(RuntimeError, match='found sharded parameters'):
        sparsity_hook(runner).before_train(runner)


@pytest.mark.timeout(300)
def test_two_processes_resume_to_the_bit_and_agree(tmp_path):
    mp.start_processes(
        in_two_processes,
        (str(tmp_path / 'rendezvous'), _two_process_run, str(tmp_path)),
        nprocs=2,
        start_method=forked.CONTEXT.get_start_method(),
    )
    straight = load(tmp_path / 'straight', 40)
    resumed = load(tmp_path / 'resumed', 40)
    for key in ('state_dict', 'ema_state_dict', 'optimizer', STATE_KEY):
        assert differences(straight[key], resumed[key], key) == []
    ranks = [
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=False)
        for rank in range(2)
    ]
    assert differences(*ranks) == []
    healed = [torch.load(tmp_path / f'healed{rank}.pth') for rank in range(2)]
    assert differences(*healed) == []
    assert differences(healed[0], ranks[0]['masks']) == []


@pytest.mark.gpu
@pytest.mark.parametrize('growth', ['random', 'momentum'])
def test_half_precision_on_a_gpu(tmp_path, growth):
    """Masks where the weights are, the generator where it always is."""
    hook = dict(init='snip', growth=growth, update_interval=4, end=40)
    amp = dict(type='AmpOptimWrapper', loss_scale='dynamic')
    train(tmp_path, 10, hook, wrapper=amp, hooks=[Watch()], save_every=10)
    runner = train(
        tmp_path, 20, hook, wrapper=amp, hooks=[Watch()], resume=True
    )
    enforcer = sparsity_hook(runner).enforcer
    assert all(mask.is_cuda for mask in enforcer.masks.values())
    assert enforcer.density == pytest.approx(0.6, abs=0.01)
    # A loss scaler starts by skipping some steps.
    assert 8 <= sparsity_hook(runner).step <= 20


@pytest.fixture(scope='module')
def sparse_run(tmp_path_factory):
    """A finished sparse run of four iterations."""
    folder = tmp_path_factory.mktemp('sparse')
    train(folder, 4, dict(sparsity=0.5, seed=3))
    return folder


def edited(sparse_run, tmp_path, edit, iteration=4):
    checkpoint = load(sparse_run, iteration)
    edit(checkpoint)
    path = tmp_path / 'edited.pth'
    torch.save(checkpoint, path)
    return str(path)


def resume(tmp_path, path, hook, iters=8, **kwargs):
    return train(
        tmp_path / 'run',
        iters,
        hook,
        load_from=str(path),
        resume=True,
        **kwargs,
    )


def test_resuming_with_another_sparsity(sparse_run, tmp_path):
    path = sparse_run / 'iter_4.pth'
    with pytest.raises(
        ValueError,
        match=r'sparsity=0\.5 and this run asks '
        r'for 0\.3\. .*redraw=True',
    ):
        resume(tmp_path, path, dict(sparsity=0.3))
    runner = resume(
        tmp_path, path, dict(sparsity=0.3, redraw=True), save_every=6
    )
    assert sparsity_hook(runner).enforcer.density == pytest.approx(
        0.7, abs=0.01
    )
    assert sparsity_hook(runner).step == 8

    # The next resumption finds masks that suit it and leaves them alone.
    saved = load(tmp_path / 'run', 6)
    again = resume(
        tmp_path / 'again',
        tmp_path / 'run' / 'iter_6.pth',
        dict(sparsity=0.3, redraw=True, update_interval=None),
        iters=7,
    )
    assert (
        differences(
            unpack_masks(saved[STATE_KEY]), sparsity_hook(again).enforcer.masks
        )
        == []
    )


def test_resuming_a_dense_run(sparse_run, tmp_path):
    path = edited(sparse_run, tmp_path, lambda c: c.pop(STATE_KEY))
    for init in ('erk', 'zeros'):
        with pytest.raises(ValueError, match='holds no masks'):
            resume(tmp_path, path, dict(sparsity=0.5, init=init))
    runner = resume(
        tmp_path, path, dict(sparsity=0.5, init='snip', redraw=True)
    )
    assert sparsity_hook(runner).step == 8


def test_resuming_with_another_scope(sparse_run, tmp_path):
    path = sparse_run / 'iter_4.pth'
    with pytest.raises(ValueError, match=r'trained dense: head\.weight'):
        resume(tmp_path, path, dict(sparsity=0.5, include='.'))
    with pytest.raises(ValueError, match=r'no longer select: backbone\.5'):
        resume(tmp_path, path, dict(sparsity=0.5, exclude='5'))


def test_resuming_without_the_hook_is_warned_about(sparse_run, tmp_path):
    runner = resume(tmp_path, sparse_run / 'iter_4.pth', None, iters=5)
    assert 'this run has no DynamicSparsityHook' in messages(runner)


def test_masks_that_do_not_fit_the_model(sparse_run, tmp_path):
    model = SparseNet()
    model.backbone[3] = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    with pytest.raises(
        ValueError,
        match=r"1 of the checkpoint's 3 masks do not fit .*"
        r'backbone.3.weight \[8, 1, 5, 5\] against \[8, 1, 3, 3\]',
    ):
        resume(
            tmp_path,
            sparse_run / 'iter_4.pth',
            dict(sparsity=0.5),
            model=model,
        )


def test_a_damaged_state_is_refused(sparse_run, tmp_path):
    def flip(checkpoint):
        checkpoint[STATE_KEY]['masks'][BACKBONE[1]][3] ^= 1

    def outdate(checkpoint):
        checkpoint[STATE_KEY]['version'] = 99

    def revive(checkpoint):
        state = checkpoint['state_dict']
        state[BACKBONE[1]] = torch.ones_like(state[BACKBONE[1]])

    for edit, message in (
        (flip, 'do not have the hash'),
        (outdate, 'version 99'),
        (revive, '91 weights in 1 layers are not zero'),
    ):
        path = edited(sparse_run, tmp_path, edit)
        with pytest.raises(ValueError, match=message):
            resume(tmp_path, path, dict(sparsity=0.5))


def test_a_new_schedule_is_told(sparse_run, tmp_path):
    runner = resume(
        tmp_path, sparse_run / 'iter_4.pth', dict(sparsity=0.5, end=100)
    )
    assert 'the schedule changed' in messages(runner)


# Downstream -----------------------------------------------------------------


KEEP = dict(init='zeros', update_interval=None)


def test_zeros_keeps_the_saved_masks(sparse_run, tmp_path):
    """Also of live weights that happen to be zero."""

    def zero_a_live_weight(checkpoint):
        weight = checkpoint['state_dict'][BACKBONE[2]]
        weight.view(-1)[weight.flatten().nonzero()[0]] = 0

    path = edited(sparse_run, tmp_path, zero_a_live_weight)
    saved = unpack_masks(load(sparse_run, 4)[STATE_KEY])
    watch = Watch()
    runner = train(tmp_path, 5, KEEP, load_from=path, hooks=[watch])
    assert differences(saved, sparsity_hook(runner).enforcer.masks) == []
    assert runner.model.get_parameter(BACKBONE[2])[saved[BACKBONE[2]]].all()
    assert updates(runner) == []


def test_zeros_reads_weights_that_come_without_masks(sparse_run, tmp_path):
    saved = unpack_masks(load(sparse_run, 4)[STATE_KEY])
    path = edited(sparse_run, tmp_path, lambda c: c.pop(STATE_KEY))
    runner = train(tmp_path, 3, KEEP, load_from=path)
    assert differences(saved, sparsity_hook(runner).enforcer.masks) == []
    assert "read from the checkpoint's zeros" in messages(runner)


def grow_depthwise(checkpoint):
    """Zeros around every depthwise kernel, as growing writes them."""
    weight = checkpoint['state_dict'][BACKBONE[1]]
    weight[:, :, [0, -1]] = 0
    weight[:, :, :, [0, -1]] = 0


def test_zeros_without_masks_leaves_grown_positions_live(sparse_run, tmp_path):
    def grow(checkpoint):
        del checkpoint[STATE_KEY]
        grow_depthwise(checkpoint)

    path = edited(sparse_run, tmp_path, grow)
    runner = train(tmp_path, 3, KEEP, load_from=path)
    mask = sparsity_hook(runner).enforcer.masks[BACKBONE[1]]
    weight = runner.model.get_parameter(BACKBONE[1])
    saved = unpack_masks(load(sparse_run, 4)[STATE_KEY])[BACKBONE[1]]
    assert mask[:, :, 0].all() and weight[:, :, 0].all()
    inner = ..., slice(1, -1), slice(1, -1)
    assert torch.equal(mask[inner], saved[inner])
    assert not weight[inner][~saved[inner]].any()


def test_zeros_of_a_dense_network_that_has_grown(tmp_path):
    """Its zeros are no pruned weights: nothing is there to be kept."""
    train(tmp_path / 'dense', 2)
    path = edited(tmp_path / 'dense', tmp_path, grow_depthwise, 2)
    with pytest.raises(ValueError, match='found nothing sparse: 0 of'):
        train(tmp_path, 3, KEEP, load_from=path)


class Detector(BaseModel):
    """Another model around the same backbone, loaded through init_cfg."""

    def __init__(self, checkpoint, prefix):
        super().__init__()

        class Backbone(BaseModel):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                for i, layer in enumerate(SparseNet().backbone):
                    self.add_module(str(i), layer)

            def forward(self, x):
                for layer in (
                    m for n, m in self.named_children() if n.isdigit()
                ):
                    x = layer(x)
                return x

        self.backbone = Backbone(
            init_cfg=dict(
                type='Pretrained', checkpoint=checkpoint, prefix=prefix
            )
        )
        self.box = nn.Linear(12, 4)

    def forward(self, inputs, label, mode='tensor'):
        return dict(loss=self.box(self.backbone(inputs)).square().mean())


@pytest.mark.parametrize('prefix', ['backbone', 'backbone.'])
def test_zeros_finds_masks_through_init_cfg(sparse_run, tmp_path, prefix):
    def zero_a_live_weight(checkpoint):
        weight = checkpoint['state_dict'][BACKBONE[2]]
        weight.view(-1)[weight.flatten().nonzero()[0]] = 0

    path = edited(sparse_run, tmp_path, zero_a_live_weight)
    runner = train(tmp_path, 2, KEEP, model=Detector(path, prefix))
    saved = unpack_masks(load(sparse_run, 4)[STATE_KEY])
    assert differences(saved, sparsity_hook(runner).enforcer.masks) == []


def test_zeros_of_a_dense_checkpoint(tmp_path):
    train(tmp_path / 'dense', 2)
    with pytest.raises(ValueError, match='found nothing sparse: 0 of 3872'):
        train(
            tmp_path, 3, KEEP, load_from=str(tmp_path / 'dense' / 'iter_2.pth')
        )


def test_zeros_of_a_foreign_scope(sparse_run, tmp_path):
    with pytest.raises(ValueError, match="none of the checkpoint's masks"):
        train(
            tmp_path,
            3,
            dict(KEEP, include='head'),
            load_from=str(sparse_run / 'iter_4.pth'),
        )


def test_a_layer_of_zeros_is_not_a_sparse_one(sparse_run, tmp_path):
    def blank(checkpoint):
        del checkpoint[STATE_KEY]
        checkpoint['state_dict'][BACKBONE[1]].zero_()

    path = edited(sparse_run, tmp_path, blank)
    runner = train(tmp_path, 3, KEEP, load_from=path)
    assert list(sparsity_hook(runner).enforcer.masks) == [
        BACKBONE[0],
        BACKBONE[2],
    ]
    assert f'{BACKBONE[1]} is zero throughout' in messages(runner)


def test_drawing_over_a_sparse_checkpoint(sparse_run, tmp_path):
    path = str(sparse_run / 'iter_4.pth')
    with pytest.raises(ValueError, match=r"Use init='zeros'.*redraw=True"):
        train(tmp_path, 3, dict(), load_from=path)
    runner = train(tmp_path, 3, dict(redraw=True), load_from=path)
    assert sparsity_hook(runner).step == 3


def test_frozen_sparse_weights_downstream(sparse_run, tmp_path):
    model = SparseNet()
    model.backbone[0].requires_grad_(False)
    runner = train(
        tmp_path,
        4,
        dict(init='zeros', update_interval=2),
        model=model,
        load_from=str(sparse_run / 'iter_4.pth'),
    )
    saved = unpack_masks(load(sparse_run, 4)[STATE_KEY])
    masks = sparsity_hook(runner).enforcer.masks
    moved = differences(saved, masks)
    assert [name.strip('/') for name in moved] == BACKBONE[1:]


# Arguments ------------------------------------------------------------------


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(sparsity=1.0), ValueError, 'sparsity must be below 1'),
        (dict(sparsity=-0.1), ValueError, 'sparsity must be 0 to 1, got -0.1'),
        (dict(sparsity=float('nan')), ValueError, 'sparsity'),
        (dict(sparsity='0.4'), TypeError, 'sparsity must be a number'),
        (dict(init='random'), ValueError, "init must be one of .*'random'"),
        (dict(growth='gradient'), ValueError, 'growth must be one of'),
        (dict(prune_rate=1.5), ValueError, 'prune_rate must be 0 to 1'),
        (dict(prune_rate=0.1, min_prune_rate=0.2), ValueError, 'exceeds'),
        (dict(update_interval=0), ValueError, 'update_interval .* least 1'),
        (dict(update_interval=2.5), TypeError, 'update_interval'),
        (dict(end=-1), ValueError, 'end must be at least 1'),
        (dict(include=()), ValueError, 'include names no pattern'),
        (dict(include='('), ValueError, 'no regular expression'),
        (dict(seed=None), TypeError, 'seed must be an integer'),
        (dict(redraw='yes'), TypeError, 'redraw must be True or False'),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        DynamicSparsityHook(**kwargs)


def test_fsdp_is_refused(tmp_path):
    """Without the accelerator that building one takes."""
    runner = make_runner(tmp_path, 2, dict())
    runner.model = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(runner.model)
    with pytest.raises(RuntimeError, match='FullyShardedDataParallel'):
        sparsity_hook(runner).before_train(runner)


def test_an_optimizer_out_of_reach_is_refused(tmp_path):
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    runner = make_runner(tmp_path, 2, dict())
    runner.optim_wrapper = OptimWrapper(
        ZeroRedundancyOptimizer(runner.model.parameters(), lr=1.0)
    )
    with pytest.raises(RuntimeError, match='cannot reach the moments'):
        runner.train()


def test_two_hooks_are_refused(tmp_path):
    with pytest.raises(ValueError, match='more than one'):
        train(
            tmp_path,
            2,
            dict(),
            hooks=[dict(type='DynamicSparsityHook', include='head')],
        )


def test_patterns_that_match_nothing(tmp_path):
    with pytest.raises(ValueError, match="'encoder' matches no"):
        train(tmp_path, 2, dict(include='encoder'))
