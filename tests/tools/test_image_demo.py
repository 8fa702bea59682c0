"""image_demo.py and the libraries' inferencers, with the demos' models."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from pelk_mm.apis.inference import (
    Classifier,
    build_predictor,
    list_images,
    predict_files,
)
from pelk_mm.utils.errors import LaunchError

DIGITS = tuple('0123456789')


@pytest.fixture
def pictures(tmp_path):
    """Of several sizes, in subfolders, two of one stem, one broken."""
    folder = tmp_path / 'pictures'
    generator = np.random.default_rng(0)
    for name, size in (
        ('a.jpg', (64, 64)),
        ('a.png', (80, 48)),
        ('deep/er/b.jpg', (96, 128)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(
            path
        )
    whole = (folder / 'a.jpg').read_bytes()
    (folder / 'broken.jpg').write_bytes(whole[: len(whole) // 2])
    (folder / 'notes.txt').write_text('not a picture')
    return folder


@pytest.fixture
def run(run_tool):
    return partial(run_tool, 'image_demo.py')


def test_folder_with_a_broken_picture(model, pictures, tmp_path, run):
    task, config, checkpoint = model
    out = tmp_path / 'out'
    status, stdout, stderr = run(
        config,
        checkpoint,
        pictures,
        '--out',
        out,
        '--device',
        'cpu',
        '--batch-size',
        2,
    )
    assert status == 1
    assert '3 of 4 pictures drawn' in stdout
    skipped = [line for line in stderr.splitlines() if 'skipped' in line]
    assert len(skipped) == 1 and 'broken.jpg' in skipped[0]
    drawn = sorted(
        str(path.relative_to(out)) for path in out.rglob('*') if path.is_file()
    )
    assert drawn == ['a.png', 'a.png.png', 'deep/er/b.png']
    for name in drawn:
        assert np.asarray(Image.open(out / name)).std() > 0
    if task == 'classification':
        assert stdout.count('0.') >= 15
    else:
        assert 'a.jpg' in stdout


def test_one_whole_picture(model, pictures, tmp_path, run):
    _, config, checkpoint = model
    status, stdout, stderr = run(
        config,
        checkpoint,
        pictures / 'a.jpg',
        '--out',
        tmp_path / 'out',
        '--device',
        'cpu',
    )
    assert status == 0, stderr
    assert '1 of 1 pictures drawn' in stdout


def test_rows_are_what_the_inferencer_found(model, pictures, tmp_path):
    task, config, checkpoint = model
    # Random weights are sure of nothing.
    options = dict(
        classification={},
        segmentation=dict(opacity=0.0),
        detection=dict(score_thr=0.0),
    )
    predictor = build_predictor(
        Config.fromfile(config), checkpoint, 'cpu', **options[task]
    )
    (result,) = predict_files(predictor, [pictures / 'a.png'], tmp_path)
    assert result.error is None and result.drawn.is_file()
    rows = result.rows
    if task == 'classification':
        assert len(rows) == 5 and {row[0] for row in rows} <= {*DIGITS}
        scores = [float(row[1]) for row in rows]
        assert scores == sorted(scores, reverse=True)
    elif task == 'segmentation':
        assert {row[0] for row in rows} <= {'background', *DIGITS}
        total = sum(float(row[1].rstrip('%')) for row in rows)
        assert total == pytest.approx(100, abs=1)
        original, drawn = map(Image.open, (pictures / 'a.png', result.drawn))
        assert (np.asarray(original) == np.asarray(drawn)).all()
    else:
        assert rows and {row[0] for row in rows} <= {*DIGITS}
        assert all(len(row[2].split()) == 4 for row in rows)


def test_a_picture_the_network_fails_on_is_passed_over(
    model, pictures, tmp_path
):
    _, config, checkpoint = model
    predictor = build_predictor(Config.fromfile(config), checkpoint, 'cpu')
    predict = predictor.predict

    def fail_on_odd_ones(images):
        if any(image.shape[0] == 80 for image in images):
            raise ValueError('80 rows are odd')
        return predict(images)

    predictor.predict = fail_on_odd_ones
    results = list(
        predict_files(
            predictor,
            [pictures / 'a.jpg', pictures / 'a.png'],
            tmp_path / 'out',
            batch_size=2,
        )
    )
    assert results[0].drawn.is_file()
    assert '80 rows are odd' in results[1].error


def test_inferencers_of_the_libraries(model, pictures):
    task, config, checkpoint = model
    image = str(pictures / 'deep' / 'er' / 'b.jpg')
    if task == 'classification':
        from mmpretrain import ImageClassificationInferencer

        (result,) = ImageClassificationInferencer(
            config, pretrained=checkpoint, device='cpu'
        )(image)
        assert result['pred_class'] in DIGITS
        assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-5)
    elif task == 'segmentation':
        from mmseg.apis import MMSegInferencer

        result = MMSegInferencer(config, checkpoint, device='cpu')(image)
        assert result['predictions'].shape == (96, 128)
    else:
        from mmdet.apis import DetInferencer

        result = DetInferencer(config, checkpoint, device='cpu')(image)
        (found,) = result['predictions']
        assert len(found['labels']) == len(found['scores'])


def test_wrong_checkpoints_are_refused(model, pictures, tmp_path, run):
    _, config, checkpoint = model
    args = (pictures, '--out', tmp_path / 'out', '--device', 'cpu')
    _, _, stderr = run(config, tmp_path / 'none.pth', *args)
    assert 'none.pth' in stderr and 'Traceback' not in stderr
    loaded = torch.load(checkpoint)
    name = [name for name in loaded['state_dict'] if name.endswith('weight')][
        -1
    ]
    del loaded['state_dict'][name]
    torch.save(loaded, tmp_path / 'part.pth')
    status, _, stderr = run(config, tmp_path / 'part.pth', *args)
    assert status == 1
    assert 'lacks 1 of' in stderr and name in stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('option', ['opacity', 'score-thr'])
def test_options_have_a_range_and_a_task(option, run, tmp_path):
    arguments = ('picture.png', '--out', tmp_path / 'out', f'--{option}')
    status, _, stderr = run('CONFIG', 'CHECKPOINT', *arguments, 1.5)
    assert status == 2 and f'--{option} must be from 0 to 1' in stderr
    with pytest.raises(LaunchError, match='classifier does not use it'):
        Classifier(Config(), '', **{option.replace('-', '_'): 0.5})


def test_sources_without_images(tmp_path):
    with pytest.raises(LaunchError, match='no file or folder'):
        list_images(tmp_path / 'nowhere')
    with pytest.raises(LaunchError, match='hold no image'):
        list_images(tmp_path)


def test_configs_of_no_task(tmp_path):
    with pytest.raises(LaunchError, match='mmpretrain.*mmseg.*mmdet'):
        build_predictor(Config(dict(model=dict())), 'x.pth')
