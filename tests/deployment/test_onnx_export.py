"""ONNX files: standard operators, and in onnxruntime the same outputs."""

import sys

import pytest
import torch
from mmengine.config import Config

from pelk_mm.deployment import onnx_export
from pelk_mm.deployment.compare import compare
from pelk_mm.deployment.networks import load_network, random_images
from pelk_mm.deployment.onnx_export import export_onnx
from pelk_mm.deployment.standard_layers import to_standard_layers
from pelk_mm.deployment.variants import load_onnx
from pelk_mm.utils.config import build_model, load_config
from pelk_mm.utils.errors import LaunchError

if not onnx_export.EXPORTS:
    pytest.skip('this torch exports otherwise', allow_module_level=True)
onnx = pytest.importorskip('onnx', reason='needs requirements/deploy.txt')
pytest.importorskip('onnxscript', reason='needs requirements/deploy.txt')
pytest.importorskip('onnxruntime', reason='needs requirements/deploy.txt')


@pytest.fixture
def network(request, trained):
    config, checkpoint = trained(request.param)
    return load_network(load_config(str(config)), str(checkpoint))


def kernels(path) -> list[int]:
    """Heights of the kernels of depthwise convolutions."""
    model = onnx.load(path)
    shapes = {value.name: value.dims for value in model.graph.initializer}
    return sorted(
        shapes[node.input[1]][2]
        for node in model.graph.node
        if node.op_type == 'Conv' and shapes[node.input[1]][1] == 1
    )


@pytest.mark.parametrize('network', ['classifier'], indirect=True)
def test_dense_dynamic_classifier(network, tmp_path):
    path = tmp_path / 'new' / 'dense.onnx'
    exported = export_onnx(
        network, path, (64, 96), dynamic=True, metadata=dict(library='mm')
    )
    assert [found.name for found in exported.differences] == ['logits']
    model = onnx.load(path)
    (opset,) = model.opset_import
    assert (opset.domain, opset.version) == ('', onnx_export.OPSET)
    assert {node.domain for node in model.graph.node} == {''}
    assert not model.functions
    # Four convolutions of stem and downsampling, four large kernels.
    assert exported.operators['Conv'] == 8
    assert kernels(path) == [5, 9, 13, 23]
    loaded = load_onnx(path)
    assert loaded.metadata == dict(
        library='mm',
        kernels='dense',
        precision='fp32',
        shape=[64, 96],
        dynamic=True,
    )
    for shape, num in (((32, 32), 3), ((160, 64), 1)):
        images = random_images(shape, num)
        (found,) = compare(network.outputs(images), loaded(images))
        assert found.relative < 1e-5
    assert list(path.parent.iterdir()) == [path]


# The new exporter takes half a minute.
@pytest.mark.slow
def test_enlarged_network_of_a_library(tmp_path):
    """From weights of the network as it was."""
    inner = dict(
        type='ConvNeXt', arch=dict(depths=[1] * 4, channels=[8] * 3 + [16])
    )
    config = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=inner,
                head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
            ),
        )
    )
    before, weights = build_model(config).eval(), tmp_path / 'weights.pth'
    torch.save(before.state_dict(), weights)
    config.model.backbone = dict(
        type='EnlargedKernels', backbone=inner, kernel_size=51
    )
    network = load_network(config, str(weights))
    path = tmp_path / 'enlarged.onnx'
    export_onnx(network, path, (64, 64), dynamic=True)
    images = random_images((96, 64), 2)
    with torch.no_grad():
        expected = before.head(before.extract_feat(images))
    torch.testing.assert_close(load_onnx(path)(images)['logits'], expected)


@pytest.mark.slow
@pytest.mark.parametrize('network', ['segmentor'], indirect=True)
def test_compact_dynamic_segmentor(network, tmp_path, monkeypatch):
    # Rows of all cells in boxes too, as larger kernels have them.
    monkeypatch.setattr('pelk_mm.deployment.standard_layers._LEAST_ROWS', 2)
    path = tmp_path / 'compact.onnx'
    exported = export_onnx(
        network, path, (64, 96), kernels='compact', dynamic=True
    )
    assert not any('::' in name for name in exported.operators)
    assert max(kernels(path)) <= 9
    loaded = load_onnx(path)
    for shape, num in (((96, 64), 2), ((160, 160), 1)):
        images = random_images(shape, num)
        (found,) = compare(network.outputs(images), loaded(images))
        assert found.name == 'logits' and found.relative < 1e-5
        assert loaded(images)['logits'].shape == (num, 4, *shape)


@pytest.mark.parametrize('network', ['detector'], indirect=True)
def test_half_detector(network, tmp_path):
    path = tmp_path / 'half.onnx'
    exported = export_onnx(
        network, path, (64, 64), kernels='compact', half=True
    )
    assert [found.name for found in exported.differences] == [
        f'level_{i}' for i in range(5)
    ]
    assert all(
        1e-5 < found.relative < load_onnx(path).tolerance
        for found in exported.differences
    )
    model = onnx.load(path)
    large = [
        value for value in model.graph.initializer if len(value.dims) == 4
    ]
    assert large and all(
        value.data_type == onnx.TensorProto.FLOAT16 for value in large
    )
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # One image of one size.
    with pytest.raises(RuntimeError, match=r'does not take.*96, 64'):
        load_onnx(path)(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize('network', ['classifier'], indirect=True)
def test_nothing_wrong_is_written(network, tmp_path, monkeypatch):
    path = tmp_path / 'out' / 'wrong.onnx'
    with pytest.raises(LaunchError, match='multiples of 32, .* 100 x 64'):
        export_onnx(network, path, (100, 64))
    with pytest.raises(ValueError, match='dense.*compact'):
        export_onnx(network, path, (32, 32), kernels='sparse')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'onnxscript', None)
        with pytest.raises(LaunchError, match=r'onnxscript.*pip install'):
            export_onnx(network, path, (32, 32))
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_text('what was there')

    def wrong(model, kernels):
        model = to_standard_layers(model, kernels)
        model.model.head.fc.bias += 1
        return model

    monkeypatch.setattr(onnx_export, 'to_standard_layers', wrong)
    with pytest.raises(RuntimeError, match='nothing is written'):
        export_onnx(network, path, (32, 32))
    assert [file.read_text() for file in path.parent.iterdir()] == [
        'what was there'
    ]


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / 'broken.onnx'
    path.write_bytes(b'not a network')
    with pytest.raises(RuntimeError, match='broken.onnx'):
        load_onnx(path)
    with pytest.raises(FileNotFoundError, match='none.onnx'):
        load_onnx(tmp_path / 'none.onnx')
