"""Pictures without colours and with full contrast."""

import numpy as np
from mmengine.registry import TRANSFORMS

import pelk_mm  # noqa: F401, registers the transform


def stretch(image):
    return TRANSFORMS.build(dict(type='StretchedGrey'))(
        dict(img=image.copy())
    )['img']


def test_colours_go_and_contrast_is_full():
    # Blue, green and red of BGR: dark, light and between to the eye.
    image = np.zeros((2, 3, 3), np.uint8)
    image[:, range(3), range(3)] = 100
    grey = stretch(image)
    assert grey.shape == image.shape and grey.dtype == np.uint8
    assert (grey == grey[..., :1]).all()
    blue, green, red = grey[0, :, 0].tolist()
    assert (blue, green) == (0, 255) and 0 < red < 255


def test_a_picture_of_one_colour_stays_one():
    grey = stretch(np.full((4, 5, 3), 77, np.uint8))
    assert (grey == grey[0, 0]).all()


def test_a_wider_range_of_brightness_changes_nothing():
    image = np.random.default_rng(0).integers(0, 100, (8, 8, 3), np.uint8)
    image = np.repeat(image[..., :1], 3, axis=2)
    image[0, 0], image[0, 1] = 0, 100
    difference = stretch(image).astype(int) - stretch(image + 155)
    assert np.abs(difference).max() <= 1
