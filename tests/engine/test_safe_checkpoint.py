"""Real runs of mmengine's Runner, in small: killed, resumed, compared."""

import errno
import itertools
import os
import shutil
from collections import Counter, OrderedDict, deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.engine import SafeCheckpointHook
from pelk_mm.engine.hooks.safe_checkpoint_hook import (
    check_resumable,
    find_resumable,
)
from pelk_mm.models.utils.safe_saving import to_plain


class Points(Dataset):
    metainfo = dict(classes=('low', 'high'), palette=[[0, 0, 0], [9, 9, 9]])

    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(3, generator=generator)
        return x, x.sum()


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        )

    def forward(self, x, y, mode='tensor'):
        output = self.layers(x)[:, 0]
        if mode == 'loss':
            return dict(loss=F.mse_loss(output, y))
        return list(output)


class Rising(BaseMetric):
    """Better at every validation, so that each has a new best checkpoint."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        iteration = MessageHub.get_current_instance().get_info('iter')
        return dict(acc=np.float32(iteration))


class Kill(Hook):
    """Ends a run in the middle, after everything else has been done."""

    priority = 'LOWEST'

    def __init__(self, step, by_epoch=False):
        self.step = step
        self.by_epoch = by_epoch

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if not self.by_epoch and runner.iter + 1 == self.step:
            raise KeyboardInterrupt

    def after_train_epoch(self, runner):
        if self.by_epoch and runner.epoch + 1 == self.step:
            raise KeyboardInterrupt


names = itertools.count()


def run(
    work_dir,
    steps,
    by_epoch=False,
    resume=None,
    hook=None,
    train=True,
    custom_hooks=None,
    val=False,
    kind=SafeCheckpointHook,
    **checkpoint,
):
    """Train; four samples a batch, three batches an epoch."""
    loop = (
        dict(by_epoch=True, max_epochs=steps)
        if by_epoch
        else dict(by_epoch=False, max_iters=steps)
    )
    loader = dict(
        batch_size=4,
        num_workers=0,
        dataset=Points(),
        collate_fn=dict(type='default_collate'),
    )
    validation = (
        dict(
            val_dataloader=dict(
                loader, sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            val_cfg=dict(),
            val_evaluator=[Rising()],
        )
        if val
        else {}
    )
    torch.manual_seed(0)
    runner = Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            loader,
            sampler=dict(
                type='DefaultSampler' if by_epoch else 'InfiniteSampler',
                shuffle=True,
            ),
        ),
        train_cfg=dict(loop, val_interval=1 if by_epoch else 4),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.05)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False),
            dict(type='MultiStepLR', milestones=[6, 12, 12], by_epoch=False),
        ],
        default_hooks=dict(
            checkpoint=hook
            or kind(
                by_epoch=by_epoch,
                **dict(interval=1 if by_epoch else 5) | checkpoint,
            )
        ),
        custom_hooks=custom_hooks,
        randomness=dict(seed=3),
        load_from=None if resume is None else str(resume),
        resume=resume is not None,
        experiment_name=f'line{next(names)}',
        log_level='WARNING',
        default_scope='mmengine',
        **validation,
    )
    if train:
        runner.train()
    return runner


def files(folder):
    """All files but the config that the runner writes."""
    return sorted(
        path.name
        for path in Path(folder).iterdir()
        if path.is_file() and path.suffix != '.py'
    )


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def assert_same_run(one, other):
    """Weights, optimizer, schedule and logs agree bit for bit."""
    for a, b in zip(
        one.model.state_dict().values(),
        other.model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    states = [runner.optim_wrapper.state_dict() for runner in (one, other)]
    assert states[0]['param_groups'] == states[1]['param_groups']
    for index, state in states[0]['state'].items():
        for key, value in state.items():
            assert torch.equal(value, states[1]['state'][index][key])
    for a, b in zip(one.param_schedulers, other.param_schedulers, strict=True):
        assert a.state_dict() == b.state_dict()
    logs = [runner.message_hub.log_scalars for runner in (one, other)]
    assert set(logs[0]) == set(logs[1])
    for name, buffer in logs[0].items():
        assert isinstance(logs[1][name], HistoryBuffer)
        for a, b in zip(buffer.data, logs[1][name].data, strict=True):
            # Checkpoints come before validation: the last one is not in them.
            if name.startswith('train/'):
                assert a.shape == b.shape
                assert 'time' in name or np.array_equal(a, b), name


class TestResuming:
    @pytest.mark.parametrize(
        ('by_epoch', 'half', 'middle'),
        [(False, 10, 'iter_10.pth'), (True, 3, 'epoch_3.pth')],
    )
    @pytest.mark.parametrize('ema', [False, True])
    def test_continues_bit_by_bit(self, tmp_path, by_epoch, half, middle, ema):
        settings = dict(by_epoch=by_epoch, val=True)

        def hooks():
            return [dict(type='EMAHook', momentum=0.1)] if ema else []

        whole = run(
            tmp_path / 'whole', 2 * half, custom_hooks=hooks(), **settings
        )
        with pytest.raises(KeyboardInterrupt):
            run(
                tmp_path / 'cut',
                2 * half,
                custom_hooks=[*hooks(), Kill(half, by_epoch)],
                **settings,
            )
        found = find_resumable(tmp_path / 'cut')
        assert Path(found).name == middle
        resumed = run(
            tmp_path / 'cut',
            2 * half,
            resume=found,
            custom_hooks=hooks(),
            **settings,
        )
        assert resumed.iter == whole.iter == (18 if by_epoch else 20)
        assert_same_run(whole, resumed)
        assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == (
            resumed.iter
        )
        if ema:
            averages = [
                next(
                    hook
                    for hook in runner.hooks
                    if type(hook).__name__ == 'EMAHook'
                ).ema_model
                for runner in (whole, resumed)
            ]
            for a, b in zip(
                averages[0].state_dict().values(),
                averages[1].state_dict().values(),
                strict=True,
            ):
                assert torch.equal(a, b)

    def test_checkpoints_load_without_running_code(self, tmp_path):
        run(tmp_path, 5, val=True)
        checkpoint = load(tmp_path / 'iter_5.pth')
        assert checkpoint['meta']['iter'] == 5
        assert checkpoint['meta']['dataset_meta'] == Points.metainfo
        assert isinstance(checkpoint['state_dict'], OrderedDict)
        history = checkpoint['message_hub']['log_scalars']['train/loss']
        assert history['history_buffer']['log'].shape == (5,)

    def test_what_other_hooks_save_is_made_plain(self, tmp_path):
        class Odd(Hook):
            loaded = None

            def before_save_checkpoint(self, runner, checkpoint):
                checkpoint['odd'] = dict(
                    array=np.arange(3),
                    scaler=dict(scale=np.float64(2)),
                    counts=Counter(a=2),
                    path=Path('x'),
                    model=runner.model,
                )

            def after_load_checkpoint(self, runner, checkpoint):
                Odd.loaded = checkpoint['odd']

        run(tmp_path, 5, custom_hooks=[Odd()])
        run(tmp_path, 6, custom_hooks=[Odd()], resume=find_resumable(tmp_path))
        assert torch.equal(Odd.loaded.pop('array'), torch.arange(3))
        assert Odd.loaded == dict(
            scaler=dict(scale=2.0), counts=Counter(a=2), path='x', model=None
        )


class TestSaving:
    def test_old_ones_go_only_when_the_new_one_is_whole(
        self, tmp_path, monkeypatch
    ):
        events = []
        replace, remove = os.replace, LocalBackend.remove

        def logged_replace(source, target):
            replace(source, target)
            if Path(target).suffix == '.pth':
                load(target)
                events.append(('whole', Path(target).name))

        def logged_remove(self, path):
            events.append(('removed', Path(path).name))
            remove(self, path)

        monkeypatch.setattr(os, 'replace', logged_replace)
        monkeypatch.setattr(LocalBackend, 'remove', logged_remove)
        run(tmp_path, 15, max_keep_ckpts=1)
        assert events == [
            ('whole', 'iter_5.pth'),
            ('whole', 'iter_10.pth'),
            ('removed', 'iter_5.pth'),
            ('whole', 'iter_15.pth'),
            ('removed', 'iter_10.pth'),
        ]
        assert files(tmp_path) == ['iter_15.pth', 'last_checkpoint']

    @pytest.mark.parametrize(
        'error',
        [
            OSError(errno.ENOSPC, 'No space left on device'),
            KeyboardInterrupt(),
        ],
    )
    @pytest.mark.parametrize('best', [False, True])
    def test_a_failed_write_loses_nothing(
        self, tmp_path, monkeypatch, error, best
    ):
        """The disk is full, or Ctrl-C comes, half-way through a file."""
        write = Path.write_bytes
        victim = 'best_acc_iter_8' if best else 'iter_10'

        def half(self, data):
            if victim in self.name:
                write(self, data[: len(data) // 2])
                raise error
            return write(self, data)

        monkeypatch.setattr(Path, 'write_bytes', half)
        settings = dict(val=True, save_best='acc', max_keep_ckpts=1)
        with pytest.raises(type(error)):
            run(tmp_path, 20, **settings)
        left = files(tmp_path)
        assert left == (
            ['best_acc_iter_4.pth', 'iter_5.pth', 'last_checkpoint']
            if best
            else ['best_acc_iter_8.pth', 'iter_8.pth', 'last_checkpoint']
        )
        for name in left[:2]:
            load(tmp_path / name)
        # The run goes on from there, and tidies up as if nothing had been.
        monkeypatch.undo()
        found = find_resumable(tmp_path)
        assert Path(found).name == left[1]
        assert (tmp_path / 'last_checkpoint').read_text() == found
        resumed = run(tmp_path, 20, resume=found, **settings)
        assert resumed.iter == 20
        assert files(tmp_path) == [
            'best_acc_iter_20.pth',
            'iter_20.pth',
            'last_checkpoint',
        ]

    def test_best_ones_replace_each_other(self, tmp_path):
        run(tmp_path, 12, val=True, save_best='acc')
        # mmengine saves again after each new best, to remember which it is.
        assert files(tmp_path) == [
            'best_acc_iter_12.pth',
            'iter_10.pth',
            'iter_12.pth',
            'iter_5.pth',
            'iter_8.pth',
            'last_checkpoint',
        ]
        assert 'optimizer' not in load(tmp_path / 'best_acc_iter_12.pth')

    @pytest.mark.parametrize('best', [None, 'acc', 'auto'])
    def test_a_validation_alone_saves_nothing(self, tmp_path, best):
        """Nothing was trained; what is trained afterwards is saved."""
        runner = run(tmp_path, 8, val=True, train=False, save_best=best)
        assert runner.val().keys() == {'acc'}
        assert files(tmp_path) == []
        assert 'best_score' not in runner.message_hub.runtime_info
        runner.train()
        saved = files(tmp_path)
        assert ('best_acc_iter_8.pth' in saved) == (best is not None)
        runner.val()

    def test_published_ones_hold_what_was_asked_for(self, tmp_path):
        run(tmp_path, 5, published_keys=['meta', 'state_dict'])
        published = [name for name in files(tmp_path) if '-' in name]
        assert len(published) == 1
        assert set(load(tmp_path / published[0])) == {'meta', 'state_dict'}

    def test_another_folder_and_name(self, tmp_path):
        work_dir, elsewhere = tmp_path / 'run', tmp_path / 'big_disk'
        settings = dict(
            out_dir=str(elsewhere),
            filename_tmpl='step{}.pth',
            max_keep_ckpts=1,
            backend_args=dict(backend='local'),
        )
        run(work_dir, 10, **settings)
        assert files(elsewhere / 'run') == ['step10.pth']
        found = find_resumable(work_dir)
        assert Path(found) == elsewhere / 'run' / 'step10.pth'
        assert run(work_dir, 12, resume=found, **settings).iter == 12


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run with iter_5.pth and iter_10.pth; not to be changed."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    run(folder, 10)
    return folder


@pytest.fixture
def work_dir(finished, tmp_path):
    """A copy whose pointer still names the original's files."""
    shutil.copytree(finished, tmp_path / 'copy')
    return tmp_path / 'copy'


def cut_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


class TestFinding:
    def test_a_copied_run_goes_on_with_its_own_files(self, work_dir):
        assert find_resumable(work_dir) == str(work_dir / 'iter_10.pth')

    def test_a_moved_run_finds_its_files(self, work_dir):
        (work_dir / 'last_checkpoint').write_text('/gone/iter_5.pth')
        assert find_resumable(str(work_dir)) == str(work_dir / 'iter_5.pth')

    @pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
    def test_torn_files_are_passed_over(self, work_dir, share):
        cut_file(work_dir / 'iter_10.pth', share)
        (work_dir / 'last_checkpoint').write_text(
            str(work_dir / 'iter_10.pth')
        )
        assert find_resumable(work_dir) == str(work_dir / 'iter_5.pth')
        cut_file(work_dir / 'iter_5.pth', share)
        assert find_resumable(work_dir) is None

    @pytest.mark.parametrize('pointer', ['', '\n', 'nonsense', None])
    def test_a_torn_pointer_does_not_matter(self, work_dir, pointer):
        path = work_dir / 'last_checkpoint'
        path.unlink()
        if pointer is not None:
            path.write_text(pointer)
        # The clock went backwards.
        os.utime(work_dir / 'iter_10.pth', (1, 1))
        assert find_resumable(work_dir) == str(work_dir / 'iter_10.pth')

    def test_a_kill_between_a_checkpoint_and_its_pointer(self, work_dir):
        (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_5.pth'))
        note = work_dir / '.next_checkpoint'
        note.write_text(str(work_dir / 'iter_10.pth'))
        assert find_resumable(work_dir) == str(work_dir / 'iter_10.pth')
        # A kill before the checkpoint stood.
        note.write_text(str(work_dir / 'iter_15.pth'))
        assert find_resumable(work_dir) == str(work_dir / 'iter_5.pth')

    def test_an_earlier_run_in_the_same_folder_stays_out(self, work_dir):
        """It was longer; the run since has got to 5."""
        (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_5.pth'))
        assert find_resumable(work_dir) == str(work_dir / 'iter_5.pth')

    def test_going_back_on_purpose_is_remembered(self, work_dir):
        """iter_10 exists, 5 is named, and the run dies before it saves."""
        (work_dir / '.iter_15.1234567890.pth').write_bytes(b'torn')
        (work_dir / '.next_checkpoint').write_text('iter_15.pth')
        with pytest.raises(KeyboardInterrupt):
            run(
                work_dir,
                20,
                resume=work_dir / 'iter_5.pth',
                custom_hooks=[Kill(7)],
            )
        assert find_resumable(work_dir) == str(work_dir / 'iter_5.pth')
        assert files(work_dir) == [
            'iter_10.pth',
            'iter_5.pth',
            'last_checkpoint',
        ]

    def test_nothing_there(self, tmp_path):
        assert find_resumable(tmp_path) is None
        assert find_resumable(tmp_path / 'missing') is None


class TestCheckResumable:
    def test_accepts_a_whole_one(self, finished):
        check_resumable(finished / 'iter_5.pth')
        check_resumable(str(finished / 'iter_5.pth'))

    def test_says_what_is_wrong(self, work_dir):
        with pytest.raises(FileNotFoundError, match=r'no checkpoint.*iter_7'):
            check_resumable(work_dir / 'iter_7.pth')
        cut_file(work_dir / 'iter_5.pth', 0.5)
        with pytest.raises(ValueError, match=r'iter_5\.pth is not a whole'):
            check_resumable(work_dir / 'iter_5.pth')
        (work_dir / 'text.pth').write_text('hello')
        with pytest.raises(ValueError, match='not a whole'):
            check_resumable(work_dir / 'text.pth')
        torch.save(
            load(work_dir / 'iter_10.pth')['state_dict'],
            work_dir / 'weights.pth',
        )
        with pytest.raises(ValueError, match=r'message_hub.*load_from'):
            check_resumable(work_dir / 'weights.pth')

    def test_objects_need_trust_once(self, tmp_path, monkeypatch):
        class Odd(Hook):
            def before_save_checkpoint(self, runner, checkpoint):
                checkpoint['odd'] = Path('x')

        with pytest.raises(KeyboardInterrupt):
            hooks = [Kill(5), Odd()]
            run(tmp_path, 10, kind=CheckpointHook, custom_hooks=hooks)
        path = tmp_path / 'iter_5.pth'
        with pytest.raises(ValueError, match='holds pickled') as caught:
            check_resumable(path)
        assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in str(caught.value)
        assert find_resumable(tmp_path) is None
        # Doing what the message says works.
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
        assert find_resumable(tmp_path) == str(path)
        resumed = run(tmp_path, 10, resume=path)
        monkeypatch.undo()
        check_resumable(tmp_path / 'iter_10.pth')
        assert_same_run(run(tmp_path / 'whole', 10), resumed)

    @pytest.mark.parametrize('hook', [CheckpointHook, SafeCheckpointHook])
    def test_mmengines_own_are_gone_on_from(self, tmp_path, hook):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 10, kind=CheckpointHook, custom_hooks=[Kill(5)])
        path = tmp_path / 'iter_5.pth'
        assert find_resumable(tmp_path) == str(path)
        resumed = run(tmp_path, 10, kind=hook, resume=path)
        assert_same_run(run(tmp_path / 'whole', 10), resumed)


class TestToPlain:
    @pytest.mark.parametrize(
        ('value', 'plain'),
        [
            (None, None),
            (True, True),
            (3, 3),
            (b'x', b'x'),
            ('x', 'x'),
            (np.float32(0.5), 0.5),
            (np.float64(0.5), 0.5),
            (np.int64(2), 2),
            (np.bool_(True), True),
            (np.str_('x'), 'x'),
            (np.longdouble(0.5), 0.5),
            (Path('a/b'), 'a/b'),
            (np.array(['a', 'b']), ['a', 'b']),
            (np.array([1, None], dtype=object), [1, None]),
            (deque([1, 2], 3), [1, 2]),
            ((1, [2, (3,)]), (1, [2, (3,)])),
            ({1, 2}, [1, 2]),
            (Counter(a=2), Counter(a=2)),
            (ConfigDict(a=dict(b=1)), dict(a=dict(b=1))),
            ({np.int64(1): np.float32(2)}, {1: 2.0}),
        ],
    )
    def test_values(self, value, plain, tmp_path):
        made = to_plain(value)
        assert made == plain
        assert type(made) is type(plain)
        torch.save(made, tmp_path / 'x.pth')
        assert load(tmp_path / 'x.pth') == plain

    @pytest.mark.parametrize(
        'dtype',
        ['bool', 'uint8', 'int32', 'int64', 'float32', 'float64', '>f8'],
    )
    def test_arrays(self, dtype):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        made = to_plain(array)
        if dtype == '>f8':
            assert made == array.tolist()
        else:
            assert torch.equal(made, torch.from_numpy(array))
            made[0] = 7  # a copy
            assert array[0, 0] == 0

    def test_histories_come_back_as_they_were(self):
        history = HistoryBuffer([0.1, 0.2], [1, 4], max_length=5)
        checkpoint = dict(
            message_hub=dict(
                log_scalars=dict(loss=to_plain(history)),
                runtime_info={},
                resumed_keys={},
            )
        )
        SafeCheckpointHook().after_load_checkpoint(
            SimpleNamespace(_resume=False), checkpoint
        )
        back = checkpoint['message_hub']['log_scalars']['loss']
        assert back.max_length == 5
        assert all(
            np.array_equal(a, b) and a.dtype == b.dtype
            for a, b in zip(back.data, history.data, strict=True)
        )

    def test_other_objects_are_left_out_loudly(self, caplog):
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        assert to_plain(dict(a=dict(b=object())), 'runtime_info') == dict(
            a=dict(b=None)
        )
        logger.removeHandler(caplog.handler)
        assert 'runtime_info.a.b is a object' in caplog.text
