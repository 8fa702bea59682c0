"""A command opens a checkpoint once, whatever it then does with it.

Opening is what is counted: the checksums and the contents are read from the
same open file, so that what is loaded is what was checked.
"""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from pelk_mm.engine.sparsity.state import STATE_KEY, pack_state
from pelk_mm.utils.config import build_model
from tests.conftest import ROOT
from tests.helpers import forked
from tests.helpers.toy_task import TOY_CONFIG


@pytest.fixture
def opens(tmp_path):
    """How often a tool opens each of some files; it has to succeed."""

    def count(files, tool, *args) -> list[int]:
        counts = tmp_path / 'counts.json'
        result = forked.run(
            'tests/helpers/counted_opens.py',
            counts,
            *files,
            '--',
            ROOT / 'tools' / tool,
            *args,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(counts.read_text())

    return count


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Config and work dir of a finished training."""
    folder = tmp_path_factory.mktemp('toy')
    config = folder / 'toy.py'
    config.write_text(TOY_CONFIG)
    result = forked.run(
        'tools/train.py', config, '--work-dir', folder / 'work'
    )
    assert result.returncode == 0, result.stderr
    return config, folder / 'work'


def test_resuming_from_a_named_one(toy, opens, tmp_path):
    config, work_dir = toy
    path = work_dir / 'iter_3.pth'
    args = ('--work-dir', tmp_path, '--resume', path)
    assert opens([path], 'train.py', config, *args) == [1]
    assert (tmp_path / 'iter_6.pth').is_file()


def test_resuming_tries_each_once(toy, opens, tmp_path):
    """The newest, which is pointed to, is torn."""
    config, work_dir = toy
    files = [tmp_path / f'iter_{i}.pth' for i in (1, 2, 3)]
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_9.pth'))
    (tmp_path / 'iter_9.pth').write_bytes(b'torn')
    contents = torch.load(work_dir / 'iter_3.pth')
    for i, path in enumerate(files):
        contents['meta']['iter'] = i + 1
        torch.save(contents, path)
    files.append(tmp_path / 'iter_9.pth')
    args = ('--work-dir', tmp_path, '--resume')
    assert opens(files, 'train.py', config, *args) == [1, 1, 1, 1]


def test_starting_from_one(toy, opens, tmp_path):
    config, work_dir = toy
    path = work_dir / 'iter_6.pth'
    args = ('--work-dir', tmp_path, '--cfg-options', f'load_from={path}')
    assert opens([path], 'train.py', config, *args) == [1]


def test_testing(toy, opens, tmp_path):
    config, work_dir = toy
    path = work_dir / 'iter_6.pth'
    args = (config, path, '--work-dir', tmp_path)
    assert opens([path], 'test.py', *args) == [1]


def test_the_demo(trained, opens, tmp_path):
    config, checkpoint = trained('classifier')
    contents = torch.load(checkpoint)
    contents['meta']['dataset_meta']['classes'] = tuple('abcde')
    checkpoint = tmp_path / 'own.pth'
    torch.save(contents, checkpoint)
    own = tmp_path / 'own.py'
    own.write_text(
        config.read_text()
        + "test_dataloader = dict(dataset=dict(type='CustomDataset', "
        "pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))"
    )
    picture = tmp_path / 'a.png'
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture)
    args = (own, checkpoint, picture, '--device', 'cpu')
    out = ('--out', tmp_path / 'out')
    assert opens([checkpoint], 'image_demo.py', *args, *out) == [1]


def test_merging(trained, opens, tmp_path):
    config, checkpoint = trained('classifier')
    tool = 'model_converters/reparameterize.py'
    args = (config, checkpoint, tmp_path / 'out', '--shape', 32, 32)
    assert opens([checkpoint], tool, *args) == [1]


@pytest.mark.slow
def test_exporting(trained, opens, tmp_path):
    config, checkpoint = trained('classifier')
    out = ('--shape', 32, 32, '--out', tmp_path / 'model.onnx')
    args = (config, checkpoint, *out)
    assert opens([checkpoint], 'deployment/export_onnx.py', *args) == [1]


TRAINING = """
data_preprocessor = dict(mean=[0] * 3, std=[255] * 3, num_classes=3)
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    dataset=dict(
        type='CustomDataset', data_root='{root}',
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
    sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook'))
custom_hooks = [dict(type='DynamicSparsityHook', init='zeros')]
model['backbone']['init_cfg'] = dict(
    type='Pretrained', checkpoint='{checkpoint}', prefix='backbone.')
"""


def test_a_backbone_that_starts_from_one(config, opens, tmp_path):
    """It is checked, loaded, and looked through for masks."""
    state = build_model(Config.fromfile(config)).state_dict()
    name = 'backbone.stages.0.blocks.0.pointwise_conv1.weight'
    mask = torch.rand_like(state[name]) > 0.5
    state[name] *= mask
    checkpoint = tmp_path / 'sparse.pth'
    masks = {STATE_KEY: pack_state({name: mask}, sparsity=0.5)}
    torch.save(dict(state_dict=state, **masks), checkpoint)
    for label in 'abc':
        (tmp_path / 'data' / label).mkdir(parents=True)
        picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
        picture.save(tmp_path / 'data' / label / '0.png')
    config.write_text(
        config.read_text()
        + TRAINING.format(root=tmp_path / 'data', checkpoint=checkpoint)
    )
    work_dir = tmp_path / 'work'
    args = (config, '--work-dir', work_dir)
    assert opens([checkpoint], 'train.py', *args) == [1]
    (log,) = work_dir.rglob('*.log')
    assert 'kept from the checkpoint' in log.read_text()
