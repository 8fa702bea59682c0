"""Pictures of every kind are read right, or refused in one line."""

import os

import cv2
import mmcv
import numpy as np
import pytest

from pelk_mm.datasets.images import read_image, sort_out
from pelk_mm.datasets.preprocessor import Preprocessor
from pelk_mm.datasets.transforms import StretchedGrey
from tests.helpers.pictures import (
    BAD,
    GOOD,
    PICTURE,
    animated_gif,
    write,
    write_odd_sizes,
)


def assert_refused(read, path, message) -> None:
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f'{path} {message}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', GOOD)
def test_right_colours_the_right_way_round(name, tmp_path):
    (path,) = write(tmp_path, name)
    image = read_image(path)
    expected = GOOD[name][1]
    assert image.dtype == np.uint8 and image.shape == expected.shape
    error = np.abs(image[..., ::-1].astype(int) - expected)
    assert error.max() <= 16 and error.mean() < 2
    assert sort_out([path]) == ([path], [])
    # As in the libraries' pipelines, which read with mmcv.
    np.testing.assert_array_equal(image, mmcv.imread(str(path)))


@pytest.mark.parametrize('name', BAD)
def test_broken_ones_are_named(name, tmp_path):
    (path,) = write(tmp_path, name)
    for read in (read_image, Preprocessor(32)):
        assert_refused(read, path, BAD[name][1])


def test_an_animation_is_its_first_frame_or_refused(tmp_path):
    path = tmp_path / 'animated.gif'
    path.write_bytes(animated_gif())
    if cv2.haveImageReader(str(path)):
        error = np.abs(read_image(path)[..., ::-1].astype(int) - PICTURE)
        assert error.mean() < 10
    else:
        assert_refused(read_image, path, 'is a GIF file that OpenCV')


def test_odd_sizes(tmp_path):
    one, wide, tall = map(read_image, write_odd_sizes(tmp_path))
    assert one.shape == (1, 1, 3)
    assert wide.shape == (1, 20000, 3) and tall.shape == (20000, 1, 3)
    for path in write_odd_sizes(tmp_path):
        assert Preprocessor(32)(path).shape == (1, 3, 32, 32)


def test_no_file_a_folder_and_a_locked_one(tmp_path):
    with pytest.raises(ValueError, match='there is no file .*gone.jpg'):
        read_image(tmp_path / 'gone.jpg')
    assert_refused(read_image, tmp_path, 'cannot be opened')
    if os.geteuid():
        (path,) = write(tmp_path, 'rgb.jpg')
        path.chmod(0)
        assert_refused(read_image, path, 'cannot be opened')


def test_sort_out(tmp_path):
    paths = write(tmp_path, 'rgb.jpg', 'text.jpg', 'cmyk.jpg', 'nothing.jpg')
    good, bad = sort_out(paths)
    assert good == [paths[0], paths[2]]
    named = [line.split(' ')[0] for line in bad]
    assert named == [str(paths[1]), str(paths[3])]


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
    ],
)
def test_stretched_grey_says_what_it_takes(image):
    takes = r"\(H, W, 3\) of uint8, got .* from a.png; .*color_type='color'"
    with pytest.raises(ValueError, match=takes):
        StretchedGrey().transform(dict(img=image, img_path='a.png'))


@pytest.mark.parametrize('size', [(1, 1), (1, 20000), (3, 2)])
def test_stretched_grey_of_odd_sizes(size):
    image = np.full((*size, 3), 7, np.uint8)
    stretched = StretchedGrey().transform(dict(img=image))['img']
    assert stretched.shape == (*size, 3)
