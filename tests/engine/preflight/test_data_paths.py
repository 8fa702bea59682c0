"""Missing data is found before anything is built, in any library's words."""

import pytest
from mmengine.config import Config

from pelk_mm.engine.preflight.data_paths import check_data
from tests.helpers import forked


def loader(**dataset):
    return Config(dict(train_dataloader=dict(dataset=dataset)))


@pytest.fixture
def data(tmp_path):
    """A folder with the images but not the annotations."""
    (tmp_path / 'images').mkdir()
    return tmp_path


def test_what_is_there_is_accepted(data):
    (data / 'list.txt').touch()
    check_data(
        loader(
            data_root=str(data),
            data_prefix=dict(img_path='images'),
            ann_file='list.txt',
        ),
        ['train', 'val'],
    )
    check_data(loader(data_root=str(data), data_prefix='images'), ['train'])
    # A data set without files, one that was left out, one elsewhere.
    check_data(loader(type='Numbers'), ['train'])
    check_data(Config(dict(train_dataloader=None)), ['train'])
    check_data(loader(data_root='s3://bucket/data'), ['train'])


@pytest.mark.parametrize(
    'dataset',
    [
        dict(data_prefix=dict(img_path='images', seg_map_path='absent')),
        dict(data_prefix='absent'),
        dict(data_prefix=dict(img='images'), ann_file='absent'),
    ],
    ids=['mmsegmentation', 'mmpretrain', 'mmdetection'],
)
def test_a_missing_part_is_named(data, dataset):
    config = loader(data_root=str(data), **dataset)
    with pytest.raises(FileNotFoundError) as error:
        check_data(config, ['train'])
    message = str(error.value)
    assert str(data / 'absent') in message
    assert 'train_dataloader.dataset.data_root=PATH' in message
    # Splits that are not used may be missing.
    check_data(config, ['test'])


def test_a_test_may_do_without_labels(data):
    """As one that only writes predictions."""
    prefix = dict(img_path='images', seg_map_path='absent')
    config = Config(
        dict(
            test_dataloader=dict(
                dataset=dict(data_root=str(data), data_prefix=prefix)
            )
        )
    )
    check_data(config, ['test'])
    prefix['img_path'] = 'absent'
    config.test_dataloader.dataset.data_prefix = prefix
    with pytest.raises(FileNotFoundError, match='there is no .*absent'):
        check_data(config, ['test'])


def test_inner_data_sets_are_looked_at_and_equal_roots_said_once(tmp_path):
    root = str(tmp_path / 'absent')
    inner = dict(data_root=root)
    config = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(
                        type='ConcatDataset', datasets=[inner, inner]
                    ),
                )
            ),
            val_dataloader=dict(dataset=inner),
        )
    )
    with pytest.raises(FileNotFoundError) as error:
        check_data(config, ['train', 'val'])
    message = str(error.value)
    assert message.count(root) == 1
    for field in (
        'train_dataloader.dataset.dataset.datasets.0.data_root=',
        'train_dataloader.dataset.dataset.datasets.1.data_root=',
        'val_dataloader.dataset.data_root=',
    ):
        assert field in message


@pytest.mark.parametrize('several', [False, True])
def test_the_annotations_of_an_evaluator_are_named(data, several):
    root = f'{data}/absent/'
    evaluator = dict(type='CocoMetric', ann_file=f'{root}notes/val.json')
    there = dict(type='CocoMetric', ann_file=str(data))
    config = Config(
        dict(
            val_dataloader=dict(dataset=dict(data_root=root)),
            val_evaluator=[there, evaluator] if several else evaluator,
            test_evaluator=dict(ann_file='absent/test.json'),
        )
    )
    with pytest.raises(FileNotFoundError) as error:
        check_data(config, ['train', 'val'])
    field = 'val_evaluator.1' if several else 'val_evaluator'
    assert str(error.value).endswith(
        f'val_dataloader.dataset.data_root=PATH {field}.ann_file='
        'PATH/notes/val.json'
    )
    # Alone it is for the evaluator to refuse, which may mean another place.
    config.val_dataloader = None
    check_data(config, ['val', 'test'])


def test_training_without_data_ends_in_one_clear_message(root, tmp_path):
    done = forked.run(
        root / 'tools/train.py',
        root / 'configs/upernet_pelk_t_ade20k.py',
        '--work-dir',
        tmp_path / 'work',
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert 'there is no data/ade/ADEChallengeData2016 ' in done.stderr
    assert 'train_dataloader.dataset.data_root=PATH' in done.stderr
    assert not (tmp_path / 'work').exists()
