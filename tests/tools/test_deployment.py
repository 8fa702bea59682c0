"""reparameterize.py and the tools of deployment/, as people call them."""

import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from pelk_mm.deployment.onnx_export import EXPORTS

needs_onnx = pytest.mark.skipif(
    not EXPORTS
    or any(
        find_spec(name) is None
        for name in ('onnx', 'onnxscript', 'onnxruntime')
    ),
    reason='needs torch 2.6 and requirements/deploy.txt',
)


@pytest.fixture(scope='module')
def run(run_tool):
    """Run a tool: exit status, stdout, stderr."""
    return lambda tool, *args: run_tool(f'{tool}.py', *args)


@pytest.fixture(scope='module')
def files(trained, tmp_path_factory, run):
    """Config and checkpoint of a classifier: trained, merged, exported."""
    config, checkpoint = trained('classifier')
    folder = tmp_path_factory.mktemp('deployment')
    status, out, err = run(
        'model_converters/reparameterize', config, checkpoint, folder
    )
    assert status == 0, err
    assert 'largest difference' in out
    merged = folder / 'classifier_deploy'
    package = folder / 'classifier.pt2'
    status, out, err = run(
        'deployment/export_torch',
        config,
        checkpoint,
        '--shape',
        64,
        96,
        '--out',
        package,
    )
    assert status == 0, err
    assert out.splitlines()[-1] == str(package)
    return dict(
        trained=(config, checkpoint),
        merged=(f'{merged}.py', f'{merged}.pth'),
        package=(package,),
    )


def test_verify(files, run, tmp_path):
    arguments = (
        '--reference',
        *files['trained'],
        '--candidate',
        *files['merged'],
        '--candidate',
        *files['package'],
    )
    status, out, err = run('deployment/verify', *arguments, '--num', 2)
    assert status == 0, err
    assert '2 images of 64 x 96 pixels' in out
    assert out.count(' ok ') == 2 and 'too far' not in out
    status, out, _ = run('deployment/verify', *arguments, '--tolerance', 0)
    assert status == 1
    assert 'too far' in out
    other = torch.load(files['merged'][1])
    other['state_dict']['head.fc.bias'] += 1
    torch.save(other, tmp_path / 'other.pth')
    status, out, _ = run(
        'deployment/verify',
        '--reference',
        *files['merged'],
        '--candidate',
        files['merged'][0],
        tmp_path / 'other.pth',
    )
    assert status == 1
    assert '1.0e+00' in out and 'too far' in out


def test_verify_refuses(files, run, tmp_path):
    (tmp_path / 'empty').mkdir()
    reference = ('--reference', *files['trained'])
    package = ('--candidate', *files['package'])
    for arguments, message in (
        ((*package, '--images', tmp_path / 'empty'), 'hold no image'),
        ((*package, '--images', tmp_path / 'nowhere'), 'no file or folder'),
        ((*package, '--shape', 64, 64), 'export it with --dynamic'),
        ((*package, '--shape', 60, 64), 'multiples of 32'),
        (('--candidate', 'a.py'), 'needs a checkpoint'),
        (
            ('--candidate', files['merged'][0], files['trained'][1]),
            'holds weights that are not merged',
        ),
        (
            ('--candidate', files['trained'][0], files['merged'][1]),
            'holds merged weights',
        ),
        (
            ('--candidate', *files['package'], files['merged'][1]),
            'holds its weights',
        ),
        (('--candidate', 'a', 'b', 'c'), 'CONFIG CHECKPOINT or one file'),
        (('--candidate', 'none.onnx'), 'none.onnx'),
    ):
        status, _, err = run('deployment/verify', *reference, *arguments)
        assert status != 0
        assert message in err, err


@needs_onnx
def test_export_onnx_and_images(files, run, tmp_path, request):
    out = tmp_path / 'classifier.onnx'
    status, printed, err = run(
        'deployment/export_onnx',
        *files['merged'],
        '--shape',
        64,
        64,
        '--compact',
        '--dynamic',
        '--out',
        out,
    )
    assert status == 0, err
    assert 'opset 18: ' in printed and ' Conv' in printed

    def verify(folder, num):
        status, printed, err = run(
            'deployment/verify',
            '--reference',
            *files['trained'],
            '--candidate',
            out,
            '--images',
            folder,
            '--num',
            num,
            '--shape',
            96,
            128,
        )
        assert status == 0, err
        assert f'{num} images of 96 x 128 pixels' in printed

    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for name in ('a.png', 'b.jpg'):
        pixels = torch.randint(256, (50, 70, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(pictures / name)
    verify(pictures, 2)
    # Skips, but not what is above.
    data = request.getfixturevalue('sample_data')
    verify(data / 'imagenet' / 'train', 3)


def test_exports_refuse(files, run, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    shape = ('--shape', 64, 64)
    before = sorted(tmp_path.rglob('*'))
    for tool, suffix in (('onnx', 'onnx'), ('torch', 'pt2')):
        good = tmp_path / f'a.{suffix}'
        for arguments, message in (
            ((*files['trained'], *shape, '--out', 'a.pth'), 'must end in .'),
            (
                (*files['trained'], '--shape', 64, 60, '--out', good),
                'multiples of 32',
            ),
            (
                (
                    files['trained'][0],
                    files['merged'][1],
                    *shape,
                    '--out',
                    good,
                ),
                'holds merged weights',
            ),
            (
                (
                    files['merged'][0],
                    files['trained'][1],
                    *shape,
                    '--out',
                    good,
                ),
                'holds weights that are not merged',
            ),
            (
                (
                    files['trained'][0],
                    tmp_path / 'no.pth',
                    *shape,
                    '--out',
                    good,
                ),
                'no.pth',
            ),
            (
                (
                    *files['trained'],
                    *shape,
                    '--out',
                    tmp_path / 'file' / good.name,
                ),
                'file',
            ),
        ):
            if tool == 'onnx' and find_spec('onnx') is None:
                continue
            status, _, err = run(f'deployment/export_{tool}', *arguments)
            assert status != 0
            assert message in err, err
    assert sorted(tmp_path.rglob('*')) == before
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    status, _, err = run(
        'deployment/export_onnx',
        *files['trained'],
        *shape,
        '--out',
        tmp_path / 'a.onnx',
    )
    assert status == 1
    assert 'pip install -r requirements/deploy.txt' in err


def test_reparameterize_refuses(files, run, tmp_path):
    for arguments, message in (
        ((*files['merged'], tmp_path / 'out'), 'merged already'),
        (
            (files['trained'][0], files['merged'][1], tmp_path / 'out'),
            'holds merged weights',
        ),
        ((*files['trained'], files['merged'][1]), 'classifier_deploy'),
    ):
        status, _, err = run('model_converters/reparameterize', *arguments)
        assert status == 1
        assert message in err, err
    assert not (tmp_path / 'out').exists()
