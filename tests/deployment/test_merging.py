"""Merged checkpoints, and what is refused."""

import pytest
import torch
from mmengine.config import Config

from pelk_mm.apis.inference import build_predictor
from pelk_mm.deployment.merging import reparameterize
from pelk_mm.deployment.networks import (
    check_shape,
    load_model,
    load_network,
    make_network,
    random_images,
)
from pelk_mm.utils.config import load_config
from pelk_mm.utils.errors import LaunchError


@pytest.mark.parametrize('task', ['classifier', 'segmentor', 'detector'])
def test_merged_files_stand_alone(task, trained, tmp_path):
    config, checkpoint = trained(task)
    merged = reparameterize(
        load_config(str(config)), str(checkpoint), tmp_path, (64, 64)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f'{task}_deploy.pth',
        f'{task}_deploy.py',
    ]
    assert max(found.relative for found in merged.differences) < 1e-5
    assert merged.parameters[1] < merged.parameters[0]
    written = load_config(str(merged.config))
    images = random_images((96, 64), 2)
    before = load_network(load_config(str(config)), str(checkpoint))
    after = load_network(written, str(merged.checkpoint))
    assert after.merged and not before.merged
    for name, expected in before.outputs(images).items():
        torch.testing.assert_close(
            after.outputs(images)[name], expected, atol=1e-4, rtol=1e-4
        )
    loaded = torch.load(merged.checkpoint)
    assert loaded['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert 'somebody' not in str(loaded['meta'])
    assert not set(loaded) & {'optimizer', 'sparsity'}
    assert not set(written) & {'optim_wrapper', 'custom_hooks'}
    # All of the model, not only what was compared.
    full = load_model(written, loaded, 'the merged file')
    assert loaded['state_dict'].keys() == full.state_dict().keys()


def test_merged_files_predict(trained, tmp_path):
    """The library's inferencer takes them as any other."""
    config, checkpoint = trained('classifier')
    loaded = Config.fromfile(config)
    loaded.test_dataloader = dict(
        dataset=dict(
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        )
    )
    merged = reparameterize(loaded, str(checkpoint), tmp_path)
    predictor = build_predictor(
        Config.fromfile(merged.config), str(merged.checkpoint), 'cpu'
    )
    image = (torch.rand(64, 64, 3) * 255).byte().numpy()
    (sample,) = predictor.predict([image])
    assert sample.pred_score.sum() == pytest.approx(1, abs=1e-5)


def test_refuses(trained, tmp_path):
    config, checkpoint = map(str, trained('classifier'))
    training = load_config(config)
    out = tmp_path / 'out'
    merged = reparameterize(training, checkpoint, tmp_path / 'merged')
    written = load_config(str(merged.config))
    wrong = load_config(config)
    wrong.model.backbone.arch.depths = (1, 1, 2, 1)
    other = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier', backbone=dict(type='ResNet', depth=18)
            ),
        )
    )
    for settings, weights, message in (
        (written, merged.checkpoint, 'merged already'),
        (training, merged.checkpoint, 'holds merged weights'),
        (wrong, checkpoint, 'another arch'),
        (other, checkpoint, 'no PeLK'),
        (training, tmp_path / 'none.pth', 'none.pth'),
    ):
        with pytest.raises(LaunchError, match=message):
            reparameterize(settings, str(weights), out)
    with pytest.raises(LaunchError, match='holds weights that are not merged'):
        load_network(written, checkpoint)
    with pytest.raises(LaunchError, match='multiples of 32'):
        reparameterize(training, checkpoint, out, (100, 64))
    assert not out.exists()
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        reparameterize(training, checkpoint, tmp_path / 'file')


def test_a_wrong_merge_is_not_written(trained, tmp_path, monkeypatch):
    config, checkpoint = trained('classifier')

    def merge(stage):
        """As if the embedding were left out of the merged bias."""
        for block in stage.blocks:
            block.conv.merge(None)
        stage.pos_embed = None

    monkeypatch.setattr('pelk_mm.models.backbones.pelk.PeLKStage.merge', merge)
    with pytest.raises(RuntimeError, match='nothing is written'):
        reparameterize(
            load_config(str(config)), str(checkpoint), tmp_path / 'out'
        )
    assert not (tmp_path / 'out').exists()


def test_no_task():
    with pytest.raises(LaunchError, match='mmpretrain'):
        config = dict(default_scope='mmpose', model=dict(type='Own'))
        make_network(Config(config), None)
    assert check_shape((32, 64)) == (32, 64)
