"""Packages of torch call the compact operator."""

import os
import re
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import pelk_mm
from pelk_mm.deployment.compare import compare
from pelk_mm.deployment.networks import load_network, random_images
from pelk_mm.deployment.torch_export import export_torch
from pelk_mm.deployment.variants import load_package
from pelk_mm.utils.config import load_config
from tests.helpers import forked

LOAD = """
import sys
import torch
import pelk_mm.ops
path, kind = sys.argv[1:]
image = torch.ones(1, 3, 64, 64)
if kind == 'exported':
    network = torch.export.load(path).module()
else:
    import torch._inductor.codecache
    network = torch._inductor.aoti_load_package(path)
with torch.no_grad():
    print(*(f'{output.double().sum().item():.6e}'
            for output in network(image)))
"""


def local_paths(package: Path) -> set[bytes]:
    """Paths in a package of where it was made."""
    modules = [Path(module.__file__).parents[1] for module in (pelk_mm, torch)]
    folders = [*modules, sys.base_prefix, tempfile.gettempdir()]
    names = b'|'.join(re.escape(os.fsencode(folder)) for folder in folders)
    with ZipFile(package) as archive:
        contents = b' '.join(map(archive.read, archive.namelist()))
    return set(re.findall(rb'(?:' + names + rb')[^\0" ]*', contents))


@pytest.mark.skipif(
    torch.__version__ < '2.6', reason='this torch has to know the largest size'
)
@pytest.mark.parametrize(
    'task, kind',
    [
        ('segmentor', 'exported'),
        pytest.param('classifier', 'compiled', marks=pytest.mark.slow),
        pytest.param('detector', 'compiled', marks=pytest.mark.slow),
    ],
)
def test_package(task, kind, trained, tmp_path):
    config, checkpoint = map(str, trained(task))
    network = load_network(load_config(config), checkpoint)
    path = tmp_path / 'new' / 'network.pt2'
    export_torch(
        network,
        path,
        (64, 64),
        kind=kind,
        dynamic=True,
        metadata=dict(library='mm'),
    )
    assert list(path.parent.iterdir()) == [path]
    assert not local_paths(path)
    loaded = load_package(path)
    assert loaded.metadata['library'] == 'mm'
    for shape, num in (((96, 64), 3), ((64, 128), 1)):
        images = random_images(shape, num)
        for found in compare(network.outputs(images), loaded(images)):
            assert found.relative < 1e-5
    if kind == 'exported':
        with pytest.raises(RuntimeError, match='does not take images'):
            loaded(random_images((60, 64)))
        calls = [
            node
            for node in loaded.run.graph.nodes
            if 'peripheral_conv2d' in str(node.target)
        ]
        assert len(calls) == 4
    # As somebody would who has the file and the operator alone.
    script = tmp_path / 'load.py'
    script.write_text(LOAD)
    result = forked.run(script, path, kind)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = [
            float(output.double().sum())
            for output in network(torch.ones(1, 3, 64, 64))
        ]
    assert [float(value) for value in result.stdout.split()] == (
        pytest.approx(expected, rel=1e-4, abs=1e-4)
    )


def test_refuses(trained, tmp_path):
    config, checkpoint = map(str, trained('classifier'))
    network = load_network(load_config(config), checkpoint)
    for arguments, message in (
        ((tmp_path / 'a.pt2', (48, 64)), 'multiples of 32'),
        ((tmp_path / 'a.pth', (64, 64)), 'must end in .pt2'),
    ):
        with pytest.raises(ValueError, match=message):
            export_torch(network, *arguments)
    with pytest.raises(ValueError, match='exported.*compiled'):
        export_torch(network, tmp_path / 'a.pt2', (64, 64), kind='script')
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        export_torch(network, tmp_path / 'file' / 'a.pt2', (64, 64))
    (tmp_path / 'broken.pt2').write_bytes(b'no package')
    with pytest.raises(RuntimeError, match='broken.pt2'):
        load_package(tmp_path / 'broken.pt2')
    foreign = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    torch.export.save(foreign, tmp_path / 'foreign.pt2')
    with pytest.raises(RuntimeError, match=r'export_torch\.py'):
        load_package(tmp_path / 'foreign.pt2')
    assert not list(tmp_path.glob('.*'))
