"""Every tool that takes a checkpoint refuses one that it should not load."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from pelk_mm.utils.config import build_model
from tests.conftest import ROOT
from tests.helpers import forked
from tests.helpers.unsafe_checkpoints import detonate, poison

PRETRAINED = (
    'model.backbone.init_cfg.type=Pretrained',
    'model.backbone.init_cfg.prefix=backbone.',
)


def arguments(name: str, config, checkpoint, folder) -> list:
    """What a tool is called with."""
    out = folder / 'out'
    return {
        'train --resume': [
            'train.py',
            config,
            '--resume',
            checkpoint,
            '--work-dir',
            out,
        ],
        'train load_from': [
            'train.py',
            config,
            '--work-dir',
            out,
            '--cfg-options',
            f'load_from={checkpoint}',
        ],
        'train resume in the config': [
            'train.py',
            config,
            '--work-dir',
            out,
            '--cfg-options',
            'resume=True',
            f'load_from={checkpoint}',
        ],
        'train init_cfg': [
            'train.py',
            config,
            '--work-dir',
            out,
            '--cfg-options',
            *PRETRAINED,
            f'model.backbone.init_cfg.checkpoint={checkpoint}',
        ],
        'test': ['test.py', config, checkpoint, '--work-dir', out],
        'image_demo': [
            'image_demo.py',
            config,
            checkpoint,
            folder / 'pictures',
            '--out',
            out,
        ],
        'get_flops': ['analysis_tools/get_flops.py', config, checkpoint],
        'visualize_kernels': [
            'analysis_tools/visualize_kernels.py',
            config,
            checkpoint,
            '--out',
            out / 'kernels.png',
        ],
        'visualize_erf': [
            'analysis_tools/visualize_erf.py',
            config,
            checkpoint,
            '--images',
            folder / 'pictures',
            '--out',
            out,
            '--size',
            32,
        ],
        'sparsity_report': [
            'analysis_tools/sparsity_report.py',
            checkpoint,
            '--no-plot',
            '--config',
            config,
        ],
        'grow_kernel': [
            'model_converters/grow_kernel.py',
            checkpoint,
            out / 'grown.pth',
            '--kernel-sizes',
            15,
            13,
            11,
            9,
        ],
        'from_convnext': [
            'model_converters/from_convnext.py',
            checkpoint,
            out / 'grown.pth',
            '--kernel-sizes',
            15,
            13,
            11,
            9,
        ],
        'publish_model': [
            'model_converters/publish_model.py',
            config,
            checkpoint,
            '--out-dir',
            out,
        ],
        'reparameterize': [
            'model_converters/reparameterize.py',
            config,
            checkpoint,
            out,
        ],
        'export_onnx': [
            'deployment/export_onnx.py',
            config,
            checkpoint,
            '--shape',
            32,
            32,
            '--out',
            out / 'model.onnx',
        ],
        'export_torch': [
            'deployment/export_torch.py',
            config,
            checkpoint,
            '--shape',
            32,
            32,
            '--out',
            out / 'model.pt2',
        ],
        'verify': [
            'deployment/verify.py',
            '--reference',
            config,
            checkpoint,
            '--candidate',
            config,
            checkpoint,
        ],
    }[name]


TOOLS = (
    'train --resume',
    'train load_from',
    'train resume in the config',
    'train init_cfg',
    'test',
    'image_demo',
    'get_flops',
    'visualize_kernels',
    'visualize_erf',
    'sparsity_report',
    'grow_kernel',
    'from_convnext',
    'publish_model',
    'reparameterize',
    'export_onnx',
    'export_torch',
    'verify',
)


@pytest.fixture
def contents(config) -> dict:
    """A whole checkpoint of the model, but for what a test does to it."""
    return dict(
        meta={},
        message_hub={},
        optimizer={},
        state_dict=build_model(Config.fromfile(config)).state_dict(),
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'pictures' / 'a.png'
    path.parent.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    return tmp_path


def assert_refused(status: int, stderr: str, checkpoint) -> str:
    """One line that names the file; and nothing was written."""
    assert status == 1, stderr
    errors = [line for line in stderr.splitlines() if 'error: ' in line]
    assert len(errors) == 1 and errors[0].startswith('error: '), stderr
    assert 'Traceback' not in stderr
    assert errors[0].count(str(checkpoint)) == 1
    return errors[0]


@pytest.mark.parametrize('tool', TOOLS)
def test_python_objects(tool, config, contents, folder, run_tool):
    marker, path = folder / 'ran', folder / 'evil.pth'
    poison(path, marker, contents)
    status, _, stderr = run_tool(*arguments(tool, config, path, folder))
    line = assert_refused(status, stderr, path)
    assert 'holds pickled Python objects (posix.mkdir)' in line
    assert 'publish_model.py --trust' in line
    detonate(path, marker)


@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'nothing'])
def test_damage(tool, damage, config, contents, folder, run_tool):
    path = folder / 'damaged.pth'
    torch.save(contents, path)
    whole = bytearray(path.read_bytes())
    weight = contents['state_dict']['backbone.norm3.weight'].numpy()
    if damage == 'truncated':
        whole = whole[: len(whole) * 2 // 3]
    elif damage == 'flipped':
        whole[whole.find(weight.tobytes()) + 7] ^= 1
    else:
        whole = b''
    path.write_bytes(whole)
    status, _, stderr = run_tool(*arguments(tool, config, path, folder))
    line = assert_refused(status, stderr, path)
    assert 'is not a whole checkpoint' in line and 'Copy it again' in line


@pytest.mark.parametrize('tool', TOOLS)
def test_no_such_file(tool, config, folder, run_tool):
    path = folder / 'gone.pth'
    status, _, stderr = run_tool(*arguments(tool, config, path, folder))
    assert 'there is no checkpoint' in assert_refused(status, stderr, path)


def test_publish_model_trusts_if_told(config, contents, folder, run_tool):
    marker, path = folder / 'ran', folder / 'evil.pth'
    poison(path, marker, contents)
    status, stdout, stderr = run_tool(
        *arguments('publish_model', config, path, folder), '--trust'
    )
    assert status == 0, stderr
    assert marker.exists()
    # What it makes is for everybody.
    marker.rmdir()
    status, _, stderr = run_tool(
        *arguments('get_flops', config, stdout.strip(), folder)
    )
    assert status == 0, stderr
    assert not marker.exists()


def test_a_command_line_of_its_own(config, contents, folder):
    """In a process of its own, as it is started by a user."""
    marker, path = folder / 'ran', folder / 'evil.pth'
    poison(path, marker, contents)
    tool, *rest = arguments('train --resume', config, path, folder)
    result = forked.run(ROOT / 'tools' / tool, *rest, cwd=folder)
    line = assert_refused(result.returncode, result.stderr, path)
    assert 'pickled Python objects (posix.mkdir)' in line
    detonate(path, marker)
