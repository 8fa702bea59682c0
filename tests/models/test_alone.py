"""The models where torch is there and nothing of OpenMMLab is."""

import re
from importlib.util import find_spec

import pytest
import torch

from pelk_mm.models import PeLK
from tests.helpers.without_libraries import LIBRARIES, run_without

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(8, 12, 16, 24), kernel_sizes=(13, 9, 7, 5)
)
#: As in the configs, which are for several GPUs.
NORM = dict(type='SyncBN', requires_grad=True)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Weights, images and outputs of a network that OpenMMLab is there for."""
    path = tmp_path_factory.mktemp('alone') / 'model.pth'
    torch.manual_seed(0)
    model = PeLK(ARCH, norm_cfg=NORM, layer_scale_init_value=1.0).eval()
    images = torch.randn(2, 3, 64, 64)
    saved = dict(images=images, output=model(images)[0].detach())
    torch.save(dict(saved, state_dict=model.state_dict()), path)
    return path


def test_they_are_what_they_are_with_it(saved):
    done = run_without(f"""
        import sys
        import torch
        from torch import nn
        from pelk_mm.models import EnlargedKernels, PeLK, enlarge_kernels
        from pelk_mm.models.utils import read_checkpoint

        path = {str(saved)!r}
        checkpoint = torch.load(path)
        images, output = checkpoint['images'], checkpoint['output']
        cfg = dict(type='Pretrained', checkpoint=path)
        model = PeLK({ARCH}, norm_cfg={NORM}, layer_scale_init_value=1.0,
                     init_cfg=cfg)
        model.init_weights()
        torch.testing.assert_close(model.eval()(images)[0], output)

        model = PeLK({ARCH}, drop_path_rate=0.5)
        model(images)[0].sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        conv = nn.Conv2d(3, 3, 7, padding=3, groups=3)
        expected = conv(images)
        torch.testing.assert_close(enlarge_kernels(conv, 51)(images), expected)
        assert not {{*{LIBRARIES}}} & sys.modules.keys()

        def say(function, *args, **kwargs):
            try:
                function(*args, **kwargs)
            except Exception as error:
                print(type(error).__name__, error)

        say(EnlargedKernels, dict(type='ResNet'), 51)
        say(PeLK, {ARCH}, norm_cfg=dict(type='BN2d'))
        say(read_checkpoint, 'https://a.b/model.pth')
        normal = dict(type='Normal', layer='Linear', std=0.1)
        say(PeLK({ARCH}, init_cfg=normal).init_weights)
    """)
    assert done.returncode == 0, done.stderr
    config, norm, address, init = done.stdout.splitlines()
    assert config.startswith('ModuleNotFoundError ')
    assert 'can be built by mmengine alone' in config
    assert "ValueError norm_cfg={'type': 'BN2d'}" in norm
    assert 'needs mmcv' in norm
    assert address.startswith('CheckpointError https://a.b/model.pth can be ')
    assert 'give its path' in address
    assert init == 'ModuleNotFoundError mmengine'


def test_the_page_about_it_runs(tmp_path, root):
    """Its code, one block after the other, with a smaller network.

    What takes seconds is importing torch, and exporting with it.
    """
    text = (root / 'docs/pytorch.md').read_text('utf-8')
    blocks = re.findall(
        r'^```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE
    )
    hub = [block for block in blocks if "_pretrained('" in block]
    assert len(blocks) > 8 and len(hub) == 1
    if find_spec('huggingface_hub') is None:
        blocks.remove(*hub)
    code = tmp_path / 'page.py'
    code.write_text(''.join(blocks), 'utf-8')
    done = run_without(f"""
        import os
        from pelk_mm.models.archs import ARCHS

        ARCHS['tiny'].update({ARCH})
        os.chdir({str(tmp_path)!r})
        exec(open('page.py', 'rb').read())
        assert (network(images) - expected).abs().max() < 1e-4
    """)
    assert done.returncode == 0, done.stderr
    assert '[8, 12, 16, 24]' in done.stdout
