"""The study of the structure: its networks, resuming, statistics, tables."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('sklearn')

PARTS = 'scenes', 'training', 'claims', 'report', 'study'


@pytest.fixture(scope='module')
def study(root):
    """The tool as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / 'tools' / 'benchmarks'))
        import structure_study

        yield structure_study
    for name in ('measure', 'studies', *(f'structure_{p}' for p in PARTS)):
        sys.modules.pop(name, None)


@pytest.fixture(scope='module')
def scenes(study):
    return sys.modules['structure_scenes']


@pytest.fixture(scope='module')
def training(study):
    return sys.modules['structure_training']


@pytest.fixture(scope='module')
def report(study):
    return sys.modules['structure_report']


@pytest.fixture(scope='module')
def task(scenes):
    return scenes.Task('scenes', 64, steps=3, scenes=(8, 2, 3))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('scenes')


# Networks and scenes --------------------------------------------------------


def test_kernels_of_other_cells(training, task):
    def grids(cells):
        network = training.Network(cells=cells)
        stages = training.Segmentor(network, task).backbone.stages
        assert [s.blocks[0].conv.large.grid for s in stages] == [
            stage.grid for stage in stages
        ]
        return [stage.grid.sizes for stage in stages]

    growing, equal, single = map(grids, ('growing', 'equal', 'single'))
    assert growing[0] == (7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 7)
    assert equal[0] == (3, 3, 2, 3, 3, 3, 3, 3, 2, 3, 3)
    for one, other in zip(growing, equal, strict=True):
        assert (len(one), sum(one)) == (len(other), sum(other))
        assert max(other) - min(other) <= 1
    assert single == [(1,) * 31, (1,) * 15]


def test_a_norm_without_the_branch(training, task):
    def parts(small_kernel):
        network = training.Network(small_kernel=small_kernel)
        backbone = training.Segmentor(network, task).backbone
        conv = backbone.stages[0].blocks[0].conv
        norms = [m for m in conv.modules() if isinstance(m, nn.BatchNorm2d)]
        return conv.small is not None, len(norms)

    assert list(map(parts, (3, 0, None))) == [
        (True, 2),
        (False, 1),
        (False, 0),
    ]


@pytest.mark.parametrize(('place', 'least'), [('behind', 1e-6), ('before', 0)])
def test_a_batch_norm_cancels_the_embedding(training, task, place, least):
    torch.manual_seed(0)
    network = training.Network(pos_embed=place)
    model = training.Segmentor(network, task)
    votes = model(torch.randn(2, 3, 64, 64))
    (votes * torch.randn_like(votes)).sum().backward()
    embed = model.backbone.stages[0].pos_embed
    largest = embed.grad.abs().max()
    other = model.backbone.stages[0].blocks[0].conv.large.weight.grad
    assert largest > least
    if place == 'before':
        assert largest < 1e-5 * other.abs().max()


@pytest.mark.parametrize('kind', ['scenes', 'bars', 'single'])
def test_what_is_asked_of_a_scene(scenes, task, folder, kind):
    task = replace(task, kind=kind)
    found = scenes.load_scenes(task, 'train', folder)
    assert found.images.shape == (8, 3, 64, 64)
    assert found.labels.shape == found.distances.shape == (8, 16, 16)
    digits = found.distances >= 0
    assert digits.any() and (found.labels[digits] >= 0).all()
    assert found.labels.max() < scenes.CLASSES[kind]
    assert (found.distances.max() > 0) == (kind == 'bars')
    assert (found.labels < 0).any() == (kind != 'single')
    if kind != 'scenes':
        # All positions are of one class, that of the bar or of the digit.
        assert all(len(np.unique(x[x >= 0])) == 1 for x in found.labels)
    again = scenes.load_scenes(task, 'train', folder)
    assert (again.images == found.images).all()


def test_splits_share_no_handwriting(scenes):
    shown = [scenes.handwritings(split) for split in scenes.SPLITS]
    indices = np.concatenate([samples.indices for samples in shown])
    assert len(np.unique(indices)) == len(indices) == 1797


def test_a_sparse_network_stays_sparse(training, task, folder):
    dense = training.Segmentor(training.Network(), task)
    sparse, figures = training.train(
        training.Network(sparsity=0.4), task, 1e-2, 0, folder
    )
    assert figures['loss'] > 0
    weights = [p for p in sparse.parameters() if p.ndim in (2, 4)]
    live = sum(int(p.count_nonzero()) for p in weights)
    assert live == pytest.approx(0.6 * sum(map(torch.numel, weights)), abs=20)
    least, most = (
        training.size_of(model, task)['macs'] for model in (sparse, dense)
    )
    assert 0.3 < least / most < 0.9


def test_measuring_changes_nothing(training, scenes, task, folder):
    model = training.Segmentor(training.Network(), task)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    tests = scenes.load_scenes(task, 'test', folder)
    for measure, about in (
        (training.size_of, task),
        (training.count_right, tests),
        (training.reach, tests),
    ):
        measure(model.train(), about)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), (measure, name)


def test_a_training_repeats(training, task, folder):
    (one, fields), (other, _) = (
        training.examine(training.Network(), task, 1e-2, 1, folder)
        for _ in range(2)
    )
    for figures in (one, other):
        del figures['cpu_seconds']
    assert one == other
    assert fields.shape == (2, 64, 64) and fields.max() == 1
    assert 0 < one['reach_before'] <= 64


# Statistics -----------------------------------------------------------------


def test_a_planted_difference_is_found_and_none_is_not_claimed(report):
    rng = np.random.default_rng(0)
    noise = rng.normal(50, 1, (100, 2, 3))
    verdicts = [report.difference(*pair)['verdict'] for pair in noise]
    assert verdicts.count('none') > 90
    noise[:, 0] += 10
    verdicts = [report.difference(*pair)['verdict'] for pair in noise]
    assert verdicts.count('more') > 95


def test_pairs_show_what_their_spread_hides(report):
    before = [10.0, 20.0, 30.0]
    after = [12.0, 22.1, 31.9]
    assert report.difference(after, before)['verdict'] == 'none'
    found = report.difference(before, after, paired=True)
    assert found['verdict'] == 'less'
    assert found['low'] < found['mean'] < found['high'] < 0
    assert found['mean'] == pytest.approx(-2)


# The study, with nothing trained --------------------------------------------


@pytest.fixture
def tiny(study, report, task, tmp_path, monkeypatch):
    """A function that runs the tool, and the trainings that it asked for."""
    done = []
    rng = np.random.default_rng(0)

    def figures(network):
        right = 60 if network.kernel_size == 7 else 90
        right += rng.uniform(0, 5)
        found = dict(right=[right], pixels=[100], cpu_seconds=0.1)
        return dict(found, params=10, macs=20, reach_before=rng.uniform(4, 5))

    def try_rate(network, task, lr, seed, folder):
        done.append((network, task, lr, seed))
        return dict(figures(network), right=[50 + (lr == 1e-2)])

    def examine(network, task, lr, seed, folder):
        assert lr == 1e-2
        done.append((network, task, lr, seed))
        found = dict(figures(network), reach_after=rng.uniform(8, 9))
        return found, np.ones((2, 8, 8))

    @contextmanager
    def processes(workers):
        pool = ThreadPoolExecutor(1)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    monkeypatch.setattr(study, 'try_rate', try_rate)
    monkeypatch.setattr(study, 'examine', examine)
    monkeypatch.setattr(study, 'processes', processes)
    monkeypatch.setattr(
        study, 'time_steps', lambda rows, *_, **__: dict.fromkeys(rows, 2.0)
    )
    for number, name in enumerate(study.TASKS, 1):
        kind = 'bars' if 'bars' in name else 'scenes'
        quick = replace(task, kind=kind, steps=number)
        monkeypatch.setitem(study.TASKS, name, quick)
    monkeypatch.setattr(study, 'load_scenes', lambda *_: None)
    monkeypatch.setattr(report, 'RANGES', ((0, 32),))
    folders = [
        f'--{n}={tmp_path / n}' for n in ('work-dir', 'results', 'pictures')
    ]

    def run(*options):
        monkeypatch.setattr(sys, 'argv', ['study', *folders, *options])
        with study.kept_runs():
            study.main()

    return run, done


def test_all_claims_in_tables_and_pictures(study, tiny, tmp_path, capsys):
    run, done = tiny
    claims = 'cells', 'size', 'maps', 'ratio', 'field'
    run('--claims', *claims, '--seeds', '0', '1', '2')
    assert len(done) == len(set(done))
    text = (tmp_path / 'results' / 'structure_study.md').read_text()
    assert capsys.readouterr().out.endswith(text + '\n')
    for claim in claims:
        assert f'## {study.CLAIMS[claim].title}\n' in text
    size = text[text.index('Larger kernels') :]
    lines = [line for line in size.splitlines() if line[:6] == '| 31 ×']
    assert len(lines) == 4 and all('| more |' in line for line in lines)
    assert '| equal cells | 10 |' in text and '| none |' in text
    tables = text.split('\n\n')
    for table in tables:
        if table.startswith('|'):
            assert len({line.count('|') for line in table.splitlines()}) == 1
    pictures = list((tmp_path / 'pictures').glob('structure_*.png'))
    assert len(pictures) == 3


def test_an_interrupted_study_goes_on(study, tiny, monkeypatch, capsys):
    run, done = tiny
    finished, examine = [], study.examine

    def interrupted(*about):
        if len(finished) == 3:
            raise KeyboardInterrupt
        finished.append(about)
        return examine(*about)

    monkeypatch.setattr(study, 'examine', interrupted)
    with pytest.raises(
        SystemExit, match='interrupted; finished runs are kept'
    ):
        run('--claims', 'cells', '--seeds', '0', '1')
    assert 'Traceback' not in capsys.readouterr().err
    # Two rows on two tasks: 12 trials.
    assert len(done) == 12 + 3
    monkeypatch.setattr(study, 'examine', examine)
    run('--claims', 'cells', '--seeds', '0', '1')
    assert len(done) == len(set(done)) == 12 + 8
    # Another seed is another run, and nothing else is.
    run('--claims', 'cells', '--seeds', '0', '1', '2')
    assert len(done) == 12 + 12


def test_no_space_left(study, tiny, monkeypatch):
    def full(path, content):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(study, 'write_json', full)
    with pytest.raises(SystemExit, match='No space left.*run.json.*are kept'):
        tiny[0]('--claims', 'cells')


def test_what_is_planned(tiny, capsys):
    run, done = tiny
    run('--dry-run', '--claims', 'cells', 'branch', '--seeds', '0', '1')
    # Two networks on two tasks and four on one: the paper's is both's.
    assert '35 trainings' in capsys.readouterr().out
    assert not done


def test_one_seed_has_no_spread(tiny, capsys):
    with pytest.raises(SystemExit):
        tiny[0]('--seeds', '0')
    assert 'two or more' in capsys.readouterr().err
