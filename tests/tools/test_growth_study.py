"""The study of grown kernels: its own pieces, with nothing trained."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip('sklearn')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from pelk_mm.utils.config import build_model


@pytest.fixture(scope='module')
def study(root):
    """The tool as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / 'tools' / 'benchmarks'))
        import growth_study

        yield growth_study
    for name in ('growth_study', 'measure'):
        sys.modules.pop(name, None)


def _run(study, row: str, seed: int, miou: float, right: int) -> dict:
    run = dict(task='bars', row=row, seed=seed, miou=miou, params=1000)
    pixels, found = [100] * study.STEPS, [right] * study.STEPS
    return dict(run, pixels=pixels, right=found, cpu_seconds=2.0)


def test_kernels_are_halved_as_maps_are(study):
    assert study.kernel_sizes(7) == [7, 7, 7, 7]
    assert study.kernel_sizes(31) == [31, 15, 7, 7]
    assert study.kernel_sizes(101) == [101, 51, 25, 13]


@pytest.mark.parametrize('task', ['digits', 'bars'])
def test_a_grown_network_starts_as_the_small_one(study, tmp_path, task):
    size = 64
    images = torch.rand(1, 3, size, size)
    small, *_, large, _, paper = study.ROWS
    classifier = build_model(study.classifier_config(False, tmp_path))
    classifier.init_weights()
    source = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=classifier.state_dict()), source)
    outputs = {}
    for row in (small, large):
        start = study.grow(str(source), row, tmp_path / row.name)
        config = study.segmentor_config(task, row, tmp_path, start)
        model = build_model(config)
        torch.manual_seed(0)
        model.init_weights()
        outputs[row] = model.eval()(images, mode='tensor')
    torch.testing.assert_close(outputs[small], outputs[large])
    assert outputs[small].std() > 0.1
    config = study.segmentor_config(task, paper, tmp_path, source)
    model = build_model(config)
    assert model.backbone.stages[0].pos_embed is not None
    assert list(model.backbone.kernel_sizes) == [31, 15, 7, 7]
    assert study.grow(str(source), paper, tmp_path) == source


def test_pixels_are_counted_by_their_distance(study):
    image = np.full((3, 8, 64), 90, np.uint8)
    image[0, :, 0] = 200
    truth = np.zeros((8, 64), np.uint8)
    truth[:, 0] = 1  # the bar itself does not count
    truth[2, 10:30] = 1
    truth[4, 40] = 2
    found = np.where(truth == 2, 1, truth)
    found[2, 20] = 0
    pixels, right = study.by_distance(image, truth, found)
    # 6 at less than 16 pixels, 14 from there to 32, one at 40.
    assert pixels[:4].tolist() == [6, 14, 1, 0]
    assert right[:4].tolist() == [6, 13, 0, 0]
    assert pixels.sum() == 21 and len(pixels) == study.STEPS


def test_a_row_has_mean_and_spread(study):
    runs = [_run(study, '7 × 7', seed, 50.0 + seed, 60) for seed in range(3)]
    runs += [_run(study, 'grown to 31', 0, 99.0, 90)]
    row = study.summarise('bars', study.ROWS[0], runs)
    assert row['mean'] == pytest.approx(
        {'mIoU': 51, '0-48 px': 60, '48-80 px': 60, '80-128 px': 60}
    )
    assert row['deviation']['mIoU'] == pytest.approx(1)
    alone = study.summarise('bars', study.ROWS[1], runs)
    assert alone['deviation']['mIoU'] == 0
    table = study.markdown_table([row, alone]).splitlines()
    assert len({line.count('|') for line in table}) == 1
    assert '51.0 ± 1.0' in table[2] and '7, 7' in table[2]
    assert '99.0 ± 0.0' in table[3] and '31, 15' in table[3]


@pytest.mark.parametrize(
    ('miou', 'word'),
    [(53.1, 'better'), (52.9, 'no difference'), (48.9, 'worse')],
)
def test_what_lies_within_the_spread_is_no_difference(study, miou, word):
    rows = [
        dict(row=name, mean=dict(mIoU=mean), deviation=dict(mIoU=1.0))
        for name, mean in (('7 × 7', 51.0), ('grown', miou))
    ]
    assert study.verdict(rows).endswith(f'points of mIoU, {word}')


def test_a_finished_run_is_kept_for_its_settings(study, tmp_path):
    settings = dict(iterations=5)
    assert study.earlier_run(tmp_path, settings) == dict(settings=settings)
    study.write_json(tmp_path / 'run.json', dict(settings=settings, miou=1.0))
    assert study.earlier_run(tmp_path, settings)['miou'] == 1
    assert 'miou' not in study.earlier_run(tmp_path, dict(iterations=6))


def test_the_picture(study, tmp_path):
    runs = [
        _run(study, row.name, seed, 50.0, 60 + seed)
        for row in study.ROWS
        for seed in range(2)
    ]
    study.draw(runs, tmp_path / 'picture.png')
    assert (tmp_path / 'picture.png').stat().st_size > 10_000
