"""What is the same in every row of packages."""

from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

import pelk_mm  # noqa: F401, makes it so


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


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
