"""Effective receptive fields, where they are known."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from pelk_mm.analysis.erf import (
    Field,
    FieldSum,
    area_ratios,
    build_for_erf,
    calibrate,
    compute_field,
    draw_fields,
    input_gradient,
    pick_images,
    save_field,
)
from pelk_mm.datasets.preprocessor import Preprocessor
from tests.helpers.models import ARCH, CLASSIFIER


def convolution(size: int, value: float) -> nn.Module:
    conv = nn.Conv2d(3, 2, size, padding=size // 2, bias=False)
    conv.weight.data.fill_(value)
    return conv


def test_of_one_convolution_it_is_the_kernel():
    conv = convolution(5, 0.5)
    conv.weight.data[:, 1] = -1
    field = input_gradient(
        conv,
        torch.ones(1, 3, 32, 32)
        + torch.tensor([1.0, 0, 0])[None, :, None, None],
    )
    expected = np.zeros((32, 32))
    # Two channels out, two colours in whose weight is positive.
    expected[14:19, 14:19] = 2 * 2 * 0.5
    assert np.allclose(field, expected)


def test_what_relu_cuts_off_counts_nothing():
    field = input_gradient(convolution(3, -1.0), torch.ones(1, 3, 8, 8))
    assert not field.any()
    with pytest.raises(ValueError, match='zero everywhere'):
        area_ratios(field)


def test_two_strided_convolutions():
    """The centre of the map lies half a stride beside that of the image."""
    net = nn.Sequential(
        nn.Conv2d(3, 1, 4, stride=4, bias=False),
        nn.Conv2d(1, 1, 3, padding=1, bias=False),
    )
    for conv in net:
        conv.weight.data.fill_(1)
    field = input_gradient(net, torch.ones(1, 3, 32, 32))
    expected = np.zeros((32, 32))
    expected[12:24, 12:24] = 3
    assert np.array_equal(field, expected)


def test_the_last_map_counts_and_vectors_are_refused():
    class Pyramid(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.convs = nn.ModuleList(convolution(s, 1.0) for s in sizes)

        def forward(self, x):
            return tuple(conv(x) for conv in self.convs)

    image = torch.ones(1, 3, 16, 16)
    assert np.array_equal(
        input_gradient(Pyramid(3, 7), image),
        input_gradient(convolution(7, 1.0), image),
    )
    vector = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
    with pytest.raises(ValueError, match='expected a map'):
        input_gradient(vector, image)


def test_not_finite():
    with pytest.raises(RuntimeError, match='not finite'):
        input_gradient(convolution(3, float('inf')), torch.ones(1, 3, 8, 8))


def test_area_ratios_by_hand():
    mass = np.zeros((10, 10))
    mass[5, 5] = 20
    mass[4:7, 4:7] += 1
    mass[1, 5] = 71
    ratios = area_ratios(mass, (0.2, 0.21, 0.29, 0.3, 0.99, 1))
    assert ratios == {
        '0.2': 0.01,
        '0.21': 0.01,
        '0.29': 0.09,
        '0.3': 0.81,
        '0.99': 0.81,
        '1': 0.81,
    }
    assert area_ratios(np.ones((8, 8)), (1,))['1'] == 1
    # A uniform field: the paper's shares are the areas, to one pixel.
    for share, ratio in area_ratios(np.ones((101, 101))).items():
        assert ratio == pytest.approx(float(share), abs=0.025)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'deep').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(
            folder / ('deep' if i % 2 else '.') / f'{i}.png'
        )
    (folder / 'notes.txt').touch()
    return folder


def test_images_are_found_and_spread(images):
    assert len(pick_images(images, 50)) == 5
    assert len(pick_images(images, 3)) == 3
    assert pick_images(images, 3) == pick_images(images, 3)
    with pytest.raises(FileNotFoundError, match='no images found'):
        pick_images(images / 'none', 5)
    with pytest.raises(ValueError, match='at least 1'):
        pick_images(images, 0)


def test_normalisation_is_the_config_s(images):
    path = pick_images(images, 1)[0]
    rgb = np.asarray(Image.open(path)).mean((0, 1))
    for settings, order in (
        (dict(to_rgb=True), [0, 1, 2]),
        (dict(bgr_to_rgb=False), [2, 1, 0]),
    ):
        config = Config(
            dict(
                data_preprocessor=dict(mean=[10] * 3, std=[2] * 3, **settings),
                model=dict(),
            )
        )
        image = Preprocessor.from_config(config, 64)(path)
        assert image.shape == (1, 3, 64, 64)
        assert image.dtype == torch.float32
        assert image.mean((0, 2, 3)).tolist() == pytest.approx(
            ((rgb - 10) / 2)[order].tolist(), abs=1
        )
    with pytest.raises(ValueError, match='notes.txt is not an image'):
        Preprocessor(64)(images / 'notes.txt')


def test_an_interrupted_sum_goes_on(images, tmp_path):
    paths, read = pick_images(images, 5), Preprocessor(32)
    net = nn.Sequential(
        convolution(3, 0.1),
        nn.Tanh(),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 5, padding=2),
    ).eval()
    whole = compute_field(
        'a', net, paths, read, FieldSum(tmp_path / 'whole.npz', 'key'), True
    )

    class InterruptionError(Exception):
        pass

    def stop(count):
        if count == 2:
            raise InterruptionError

    partial = tmp_path / 'partial.npz'
    with pytest.raises(InterruptionError):
        compute_field(
            'a', net, paths, read, FieldSum(partial, 'key'), True, stop
        )
    running = FieldSum(partial, 'key')
    assert running.count == 2
    seen = []
    field = compute_field('a', net, paths, read, running, True, seen.append)
    assert seen == [2, 3, 4, 5]
    assert field.images == 5
    assert np.array_equal(field.matrix, whole.matrix)
    # Of other inputs, or not whole, nothing is taken over.
    assert FieldSum(partial, 'other').count == 0
    partial.write_bytes(partial.read_bytes()[:100])
    assert FieldSum(partial, 'key').count == 0


def test_calibration():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).eval()
    images = [torch.randn(1, 3, 8, 8) * 3 + 5 for _ in range(4)]
    calibrate(net, images)
    mean = torch.cat(images).mean((0, 2, 3))
    assert torch.allclose(net[0].running_mean, mean, atol=1e-4)
    assert not any(module.training for module in net.modules())
    assert net[0].momentum == 0.1


def test_backbones_return_maps_and_their_blocks_take_part():
    first = build_for_erf(Config(CLASSIFIER))
    assert first(torch.rand(1, 3, 64, 64))[-1].ndim == 4
    again = build_for_erf(Config(CLASSIFIER))
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    assert first.stages[0].blocks[0].gamma.eq(1).all()
    field = input_gradient(first, torch.rand(1, 3, 96, 96))
    # With LayerScale at 1e-6 nothing beyond a patch of 32 would be seen.
    assert (field > 0).mean() > 2 * 32**2 / 96**2


def test_weights_change_the_field_and_others_are_refused(tmp_path):
    config = Config(CLASSIFIER)
    path = str(tmp_path / 'weights.pth')
    net = build_for_erf(config)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.1)
    torch.save(
        {
            f'backbone.{name}': value
            for name, value in net.state_dict().items()
        },
        path,
    )
    loaded = build_for_erf(config, path)
    for one, other in zip(net.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)
    other = Config(CLASSIFIER)
    other.model.backbone.arch = dict(ARCH, depths=(1, 2, 2, 1))
    with pytest.raises(RuntimeError, match='another arch'):
        build_for_erf(other, path)
    resnet = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(backbone=dict(type='ResNet', depth=18)),
        )
    )
    with pytest.raises(RuntimeError, match='no weights of a ResNet'):
        build_for_erf(resnet, path)
    small = build_for_erf(resnet)
    torch.save(
        dict(
            state_dict={
                f'backbone.{name}': value
                for name, value in small.state_dict().items()
            }
        ),
        path,
    )
    assert torch.equal(
        build_for_erf(resnet, path).conv1.weight, small.conv1.weight
    )
    resnet.model.backbone.depth = 34
    with pytest.raises(
        RuntimeError, match='does not fit this ResNet.*missing'
    ):
        build_for_erf(resnet, path)
    resnet.model.backbone = dict(type='NoSuchNet')
    with pytest.raises(ValueError, match='not registered'):
        build_for_erf(resnet)


def test_the_network_in_enlarged_kernels_is_asked(tmp_path):
    """For maps, and to start from the weights that are given."""
    path = str(tmp_path / 'weights.pth')
    inner = dict(
        type='ConvNeXt',
        arch=dict(depths=[1] * 4, channels=[8] * 4),
        init_cfg=dict(type='Pretrained', checkpoint='none.pth'),
    )
    backbone = dict(type='EnlargedKernels', backbone=inner, kernel_size=31)
    both = [
        Config(dict(default_scope='mmpretrain', model=dict(backbone=each)))
        for each in (inner, backbone)
    ]
    x = torch.rand(1, 3, 64, 64)
    before = build_for_erf(both[0])
    torch.save(before.state_dict(), path)
    y, z = before(x)[-1], build_for_erf(both[1], path)(x)[-1]
    assert y.ndim == 4
    torch.testing.assert_close(y, z)


def test_files_and_figure(tmp_path):
    matrix = np.zeros((64, 64))
    matrix[28:37, 28:37] = 3
    field = Field('a net', matrix, 7, False)
    summary = save_field(field, tmp_path / 'out', dict(size=64))
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'a net.npy',
        'a net.json',
    }
    assert np.array_equal(np.load(tmp_path / 'out' / 'a net.npy'), matrix)
    assert summary['area_ratios']['0.99'] == pytest.approx(81 / 64**2)
    figure = draw_fields([field, field])
    assert figure.get_suptitle() == (
        'Effective receptive fields, untrained\n7 images of 64 × 64 pixels'
    )
    assert len(figure.axes) == 3
    assert figure.axes[0].images[0].get_array().max() == 1
    for drawn in (figure, draw_fields([field])):
        drawn.draw_without_rendering()
        text, whole = drawn.get_tightbbox(), drawn.bbox_inches
        assert whole.fully_contains(*text.min)
        assert whole.fully_contains(*text.max)
