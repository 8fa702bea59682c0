"""What is the same in every set of packages."""

import colorsys
import sys
from pathlib import Path
from pickle import UnpicklingError

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from pelk_mm.compat import require_ops  # importing pelk_mm makes it so
from pelk_mm.utils.errors import LaunchError
from tests.helpers.commands import run


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.skipif(
    torch.__version__ < '2.6', reason='this torch loads all that is pickled'
)
@pytest.mark.parametrize(
    'load',
    [
        CheckpointLoader.load_checkpoint,
        lambda path: load_checkpoint(nn.Linear(1, 1), path),
    ],
)
def test_mmengine_runs_no_code_of_a_checkpoint(tmp_path, load):
    path, mark = str(tmp_path / 'hostile.pth'), tmp_path / 'mark'
    weights = nn.Linear(1, 1).state_dict()
    torch.save(dict(state_dict=weights, extra=Payload(mark)), path)
    with pytest.raises(UnpicklingError):
        load(path)
    assert not mark.exists()


def test_plain_weights_are_loaded(tmp_path):
    path = str(tmp_path / 'plain.pth')
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    torch.save(dict(state_dict=model.state_dict()), path)
    load_checkpoint(other, path)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    'base',
    [
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
        'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    ],
)
def test_a_config_on_top_of_a_librarys(tmp_path, base):
    file = tmp_path / 'config.py'
    file.write_text(f'_base_ = {base!r}\nwork_dir = "here"\n')
    config = Config.fromfile(file)
    assert config.work_dir == 'here'
    assert config.model.backbone.depth == 50


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('factor', [-0.5, -0.2, -1e-3, 0.0, 0.1, 0.5])
def test_hue_is_shifted_both_ways(factor, backend):
    """Whatever numpy: 2 raises on a negative byte, 1 wraps it."""
    colours = np.eye(3, dtype=np.uint8)[None] * 200 + 20
    found = mmcv.adjust_hue(colours, factor, backend=backend)
    for before, after in zip(colours[0], found[0], strict=True):
        hue, *rest = colorsys.rgb_to_hsv(*before[::-1] / 255)
        expected = np.array(colorsys.hsv_to_rgb((hue + factor) % 1, *rest))
        assert np.abs(after[::-1] - expected * 255).max() < 8


def test_mmpretrains_colour_jitter():
    from mmpretrain.datasets import ColorJitter

    jitter = ColorJitter(hue=0.1)
    image = np.full((2, 2, 3), (20, 120, 220), np.uint8)
    for seed in range(8):
        np.random.seed(seed)
        changed = jitter.transform(dict(img=image.copy()))['img']
        assert changed.dtype == np.uint8 and (changed != image).any()


WITHOUT_OPS = """
import sys
sys.modules['mmcv._ext'] = None
import pelk_mm, torch
from mmengine.registry import init_default_scope
init_default_scope('mmseg')
from mmseg.registry import MODELS
MODELS.build(dict(type='FCNHead', in_channels=4, channels=4, num_classes=2))
from mmcv.ops import nms, point_sample
assert point_sample(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2)).shape[2] == 3
from mmcv.ops import get_compiler_version
assert get_compiler_version() == 'n/a'
try:
    nms(torch.zeros(1, 4), torch.ones(1), 0.5)
except pelk_mm.utils.errors.LaunchError as error:
    print(error)
"""


def test_segmentation_needs_no_compiled_operators():
    """Seconds: mmsegmentation has to be imported anew."""
    # With a message of mmcv's, where mmcv.ops was imported too early.
    done = run(sys.executable, '-W', 'error:Fail to', '-c', WITHOUT_OPS)
    assert done.returncode == 0, done.stderr
    assert "nms needs mmcv's compiled operators" in done.stdout
    assert 'python -m pelk_mm.doctor' in done.stdout


def test_what_needs_the_compiled_operators_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', mmcv)
    require_ops('this')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    with pytest.raises(LaunchError, match="^detection needs mmcv's compiled"):
        require_ops('detection')
