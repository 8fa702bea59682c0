"""grow_kernel.py and publish_model.py, as people call them."""

import hashlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from pelk_mm.apis.conversion import grow_checkpoint, publish_checkpoint
from pelk_mm.engine.sparsity.state import STATE_KEY, pack_state, unpack_masks
from pelk_mm.models import PeLK
from pelk_mm.utils.config import build_model
from tests.helpers.models import ARCH, CLASSIFIER, CONFIG, DETECTOR, SEGMENTOR

BIGGER = dict(kernel_sizes=(31, 15, 13, 11), center_radius=3)


@pytest.fixture
def run(run_tool):
    """Run a converter by its file name: exit status, stdout, stderr."""
    return lambda tool, *args: run_tool(f'model_converters/{tool}', *args)


def trained(config: dict = CLASSIFIER, sparse: bool = False) -> dict:
    """A checkpoint with all that a training leaves in one."""
    model = build_model(Config(config))
    masks = {}
    for name, parameter in model.named_parameters():
        if sparse and parameter.ndim in (2, 4) and 'backbone' in name:
            masks[name] = torch.rand_like(parameter) > 0.4
            parameter.data *= masks[name]
    state = model.state_dict()
    checkpoint = dict(
        meta=dict(
            dataset_meta=dict(classes=('a', 'b', 'c')),
            epoch=3,
            iter=30,
            cfg='work_dir = "/home/somebody"',
        ),
        state_dict=state,
        ema_state_dict={
            'steps': torch.tensor(30),
            **{
                f'module.{name}': torch.zeros_like(value)
                for name, value in state.items()
            },
        },
        optimizer=dict(state={}, param_groups=[]),
        message_hub=dict(log_scalars={}),
    )
    if sparse:
        checkpoint[STATE_KEY] = pack_state(masks, sparsity=0.4)
    return checkpoint


@pytest.mark.parametrize(
    'config',
    [CLASSIFIER, SEGMENTOR, DETECTOR],
    ids=['classifier', 'segmentor', 'detector'],
)
def test_a_grown_checkpoint_starts_the_bigger_model(config):
    grown, stages = grow_checkpoint(trained(config), BIGGER)
    bigger = Config(config)
    bigger.model.backbone.arch = dict(ARCH, **BIGGER)
    build_model(bigger).load_state_dict(grown['state_dict'])
    assert [stage.new.kernel_size for stage in stages] == [31, 15, 13, 11]
    assert not grown.keys() & {'optimizer', 'message_hub', 'ema_state_dict'}
    assert grown['meta']['dataset_meta']['classes'] == ('a', 'b', 'c')
    assert 'cfg' not in grown['meta']


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_grow_finds_the_backbone(prefix):
    state = {
        prefix + name: value for name, value in PeLK(ARCH).state_dict().items()
    }
    grown, _ = grow_checkpoint(state, BIGGER)
    assert grown['state_dict'].keys() == state.keys()


def test_growing_by_name():
    arch = dict(PeLK.arch_settings['tiny'], depths=(3, 3, 9, 3))
    with torch.device('meta'):
        shapes = PeLK(arch).state_dict()
    # What growing looks at; the rest is many megabytes.
    state = {
        name: torch.ones(value.shape)
        for name, value in shapes.items()
        if name.endswith(('large.weight', 'pos_embed', '.norm.weight'))
        or name.startswith('downsample_layers.0.')
    }
    grown, stages = grow_checkpoint(state, 'tiny-101')
    with torch.device('meta'):
        expected = PeLK('tiny-101').state_dict()
    assert grown['state_dict'].keys() == state.keys()
    for name, value in grown['state_dict'].items():
        assert value.shape == expected[name].shape
    assert [stage.old.kernel_size for stage in stages] == [51, 49, 47, 13]


def test_merged_weights_grow_if_their_arch_is_said():
    model = PeLK(ARCH)
    model.switch_to_deploy()
    with pytest.raises(RuntimeError, match='say which arch'):
        grow_checkpoint(model.state_dict(), BIGGER)
    grown, _ = grow_checkpoint(model.state_dict(), BIGGER, from_arch=ARCH)
    PeLK(dict(ARCH, **BIGGER), deploy=True).load_state_dict(
        grown['state_dict']
    )


def test_grow_keeps_masks_and_frees_new_positions():
    checkpoint = trained(sparse=True)
    grown, _ = grow_checkpoint(checkpoint, BIGGER)
    before = unpack_masks(checkpoint[STATE_KEY])
    after = unpack_masks(grown[STATE_KEY])
    state = grown['state_dict']
    assert before.keys() == after.keys()
    for name, mask in after.items():
        assert not state[name][~mask].any()
        if 'conv.large' not in name:
            assert torch.equal(mask, before[name])
    name = 'backbone.stages.0.blocks.0.conv.large.weight'
    assert not state[name][..., 0, :].any()
    assert after[name][..., 0, :].all()


def test_a_dense_checkpoint_grows_dense():
    checkpoint = trained()
    grown, _ = grow_checkpoint(checkpoint, BIGGER)
    masks = unpack_masks(grown[STATE_KEY])
    assert masks and all(mask.all() for mask in masks.values())


@pytest.mark.parametrize(
    'arch, message',
    [
        (dict(ARCH), 'are the same'),
        ('tiny', 'only kernel sizes and the centre'),
        (dict(depths=(1, 1, 3, 1), kernel_sizes=(31, 15, 13, 11)), 'depths'),
        (dict(kernel_sizes=(30, 15, 13, 11)), 'must be odd'),
    ],
)
def test_grow_refuses(arch, message):
    with pytest.raises(ValueError, match=message):
        grow_checkpoint(trained(), arch)


def test_grow_refuses_other_models():
    with pytest.raises(RuntimeError, match='found none at all'):
        grow_checkpoint({'fc.weight': torch.zeros(1)}, BIGGER)


def test_grow_kernel_command(run, tmp_path):
    torch.save(trained(), tmp_path / 'small.pth')
    status, out, err = run(
        'grow_kernel.py',
        tmp_path / 'small.pth',
        tmp_path / 'big.pth',
        '--kernel-sizes',
        31,
        15,
        13,
        11,
        '--center-radius',
        3,
    )
    assert status == 0, err
    row = out.splitlines()[-6].split()
    assert row[:-1] == ['0', '13', '(', '9)', '->', '31', '(13)']
    assert 0 < float(row[-1]) < 1
    grown = torch.load(tmp_path / 'big.pth')
    PeLK(dict(ARCH, **BIGGER)).load_state_dict(
        {
            name.removeprefix('backbone.'): value
            for name, value in grown['state_dict'].items()
            if name.startswith('backbone.')
        }
    )
    before = (tmp_path / 'big.pth').read_bytes()
    for args, message in (
        (('--kernel-sizes', 13, 11, 9, 7), 'are the same'),
        (('--arch', 'tiny'), 'only kernel sizes'),
        ((), 'say what to grow to'),
        (('--arch', 'tiny', '--kernel-sizes', 13, 11, 9, 7), 'leave out'),
    ):
        status, _, err = run(
            'grow_kernel.py',
            tmp_path / 'small.pth',
            tmp_path / 'big.pth',
            *args,
        )
        assert status != 0
        assert message in err
    assert (tmp_path / 'big.pth').read_bytes() == before


@pytest.fixture
def config(config):
    return Config.fromfile(config)


@pytest.mark.parametrize('weights', ['average', 'raw', 'both'])
def test_publish(weights, config, tmp_path):
    checkpoint = trained(sparse=True)
    torch.save(checkpoint, tmp_path / 'epoch_3.pth')
    path = publish_checkpoint(
        config,
        str(tmp_path / 'epoch_3.pth'),
        tmp_path / 'out',
        weights=weights,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'small_pelk-{digest[:8]}.pth'
    published = torch.load(path)
    zeros = all(not value.any() for value in published['state_dict'].values())
    assert zeros == (weights == 'raw')
    expected = {'meta', 'state_dict', STATE_KEY}
    assert published.keys() == expected | (
        {'ema_state_dict'} if weights == 'both' else set()
    )
    assert published['meta']['config'] == 'small_pelk'
    assert published['meta']['dataset_meta']['classes'] == ('a', 'b', 'c')
    assert 'somebody' not in str(published['meta'])
    build_model(config).load_state_dict(published['state_dict'])
    assert list((tmp_path / 'out').iterdir()) == [path]


def test_publish_refuses(config, tmp_path):
    checkpoint = trained()
    del checkpoint['ema_state_dict']
    torch.save(checkpoint, tmp_path / 'plain.pth')
    with pytest.raises(RuntimeError, match='no moving average'):
        publish_checkpoint(
            config,
            str(tmp_path / 'plain.pth'),
            tmp_path / 'out',
            weights='raw',
        )
    other = tmp_path / 'other.py'
    other.write_text(CONFIG.format(classes=4))
    with pytest.raises(RuntimeError, match=r'head\.fc\.weight'):
        publish_checkpoint(
            Config.fromfile(other),
            str(tmp_path / 'plain.pth'),
            tmp_path / 'out',
        )
    assert not (tmp_path / 'out').exists()


def test_publish_command_and_trust(run, config, tmp_path):
    checkpoint = trained()
    checkpoint['message_hub'] = dict(
        log_scalars=dict(loss=HistoryBuffer([1.0], [1])), file=tmp_path
    )
    checkpoint['meta']['seed'] = np.int64(3)
    torch.save(checkpoint, tmp_path / 'stock.pth')
    args = (config.filename, tmp_path / 'stock.pth', '--out-dir', tmp_path)
    status, _, err = run('publish_model.py', *args)
    assert status == 1
    assert '--trust' in err
    status, out, err = run('publish_model.py', *args, '--trust')
    assert status == 0, err
    path = out.splitlines()[-1]
    assert torch.load(path)['meta']['epoch'] == 3
