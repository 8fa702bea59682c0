"""What timm and the Hugging Face Hub expect of a network."""

import inspect
import json
import sys

import pytest
import torch

from pelk_mm.models import PeLK

ARCH = dict(
    depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), kernel_sizes=(13, 9, 7, 5)
)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ('out_indices', 'stages'), [(-1, 4), ((0, 2), 3), (range(4), 4)]
)
def test_features_are_as_they_are_listed(out_indices, stages):
    model = PeLK(ARCH, out_indices=out_indices, gap_before_final_norm=False)
    info = model.feature_info
    assert len(info) == stages
    # timm takes the entries of the outputs, and hooks modules by name.
    for i, y in zip(model.out_indices, model(IMAGES), strict=True):
        assert info[i]['num_chs'] == y.shape[1]
        assert info[i]['reduction'] == IMAGES.shape[-1] // y.shape[-1]
        assert model.get_submodule(info[i]['module']) is model.stages[i]
    assert model.num_features == info[-1]['num_chs']


def test_forward_features_is_the_last_map():
    model = PeLK(ARCH).eval()
    features = model.forward_features(IMAGES)
    assert features.shape == (2, model.num_features, 2, 2)
    assert features.is_contiguous()
    (pooled,) = model(IMAGES)
    torch.testing.assert_close(model.norm3(features.mean((2, 3))), pooled)
    with pytest.raises(ValueError, match='too small'):
        model.forward_features(IMAGES[..., :16])


def test_the_config_has_every_argument():
    """But those that are of one machine."""
    arguments = inspect.signature(PeLK).parameters
    config = PeLK(ARCH).config
    assert arguments.keys() - config.keys() == {'backend', 'init_cfg'}
    assert json.loads(json.dumps(config)).keys() <= arguments.keys()


class TestHub:
    @pytest.fixture(autouse=True)
    def _packages(self, monkeypatch):
        pytest.importorskip('huggingface_hub')
        # Nothing here is to be looked for elsewhere.
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)

    @pytest.mark.parametrize(
        'arguments',
        [
            dict(arch=ARCH),
            dict(arch=dict(ARCH, center_radius=1), small_kernel=3),
            dict(
                arch=ARCH,
                in_channels=4,
                conv_ratio=0.5,
                pos_embed=False,
                use_grn=True,
                norm_cfg=dict(type='BN', eps=1e-3),
                drop_path_rate=0.1,
                layer_scale_init_value=0.5,
                out_indices=(1, 3),
                frozen_stages=1,
                gap_before_final_norm=True,
                with_cp=True,
            ),
            dict(arch='convnext-atto', out_indices=0),
        ],
    )
    @pytest.mark.parametrize('merged', [False, True])
    @torch.no_grad()
    def test_comes_back_as_it_was(
        self, arguments, merged, tmp_path, randomise
    ):
        model = randomise(PeLK(backend='fft', **arguments)).eval()
        if merged:
            model.switch_to_deploy()
        model.save_pretrained(tmp_path / 'new')
        back = PeLK.from_pretrained(tmp_path / 'new')
        assert type(back) is PeLK and not back.training
        assert back.config == PeLK(**arguments).config | dict(deploy=merged)
        expected = model.state_dict()
        assert back.state_dict().keys() == expected.keys()
        for name, value in back.state_dict().items():
            assert torch.equal(value, expected[name]), name
        images = torch.randn(1, model.in_channels, 64, 64)
        for y, z in zip(back(images), model(images), strict=True):
            # By other backends.
            torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)

    def test_arguments_can_be_others(self, tmp_path):
        PeLK(ARCH).save_pretrained(tmp_path)
        model = PeLK.from_pretrained(
            tmp_path, out_indices=range(4), drop_path_rate=0.2
        )
        assert len(model(IMAGES)) == 4
        assert model.config['drop_path_rate'] == 0.2

    def test_a_card_names_the_library(self, tmp_path):
        PeLK(ARCH).save_pretrained(tmp_path)
        card = tmp_path / 'README.md'
        assert 'library_name: pelk_mm' in card.read_text()
        card.write_text('mine')
        PeLK(ARCH).save_pretrained(tmp_path)
        assert card.read_text() == 'mine'

    def test_unfit_folders_say_why(self, tmp_path):
        folder = tmp_path / 'saved'
        model = PeLK(ARCH)
        model.save_pretrained(folder)

        def refuses(error, message, name=folder, **kwargs):
            with pytest.raises(error, match=message):
                PeLK.from_pretrained(name, **kwargs)

        missing = FileNotFoundError
        refuses(missing, 'gone: there is no such folder', tmp_path / 'gone')
        refuses(missing, 'load_pretrained', folder / 'model.safetensors')
        refuses(missing, 'some/where: ', 'some/where')
        refuses(TypeError, 'kernel_size', kernel_size=51)
        other = dict(ARCH, depths=(1, 1, 1, 1))
        refuses(RuntimeError, 'of another arch', arch=other)
        refuses(RuntimeError, 'merged', deploy=True)
        (folder / 'model.safetensors').unlink()
        refuses(missing, 'saved: there is no .*model.safetensors')
        (folder / 'config.json').write_text(json.dumps(dict(hidden=3)))
        refuses(missing, 'saved: there is no config.json of a PeLK')
        (folder / 'config.json').unlink()
        refuses(missing, 'saved: there is no config.json of a PeLK')


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    message = 'need huggingface_hub and safetensors .*: pip install'
    for function in PeLK(ARCH).save_pretrained, PeLK.from_pretrained:
        with pytest.raises(ImportError, match=message):
            function(tmp_path)
    assert not list(tmp_path.iterdir())
