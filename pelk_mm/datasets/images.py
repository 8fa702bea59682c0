"""Finding image files, and reading them to their end."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# fmt: off
IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm',
)
# fmt: on
#: What Pillow raises where it cannot decode an image.
_BROKEN = OSError, SyntaxError, ValueError, Image.DecompressionBombError


def find_images(folder: str | Path) -> Iterator[Path]:
    """Files named as images, in order; links to folders are followed."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(path, name)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image to its end, as the pipelines would: ``(H, W, 3)``, BGR.

    OpenCV returns the upper part of a truncated file without an error, so
    that Pillow reads it first. Transparency is ignored, EXIF orientation is
    not; a ValueError names the file and says why it cannot be read.
    """
    path = Path(path)
    try:
        # Not by its path: OpenCV would not say what is wrong with that.
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f'there is no file {path}') from error
    except OSError as error:
        text = f'{path} cannot be opened: {error.strerror}'
        raise ValueError(text) from error
    if not content:
        raise ValueError(f'{path} is not an image: it has 0 bytes')
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f'{path} is not an image') from error
    except _BROKEN as error:
        raise ValueError(f'{path} cannot be decoded: {error}') from error
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(
            f'{path} is a {kind} file that OpenCV, which the libraries read '
            'images with, does not read; convert it to PNG or JPEG'
        )
    return image


def sort_out(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The images that can be read, and of each of the others why not."""
    good, bad = [], []
    for path in paths:
        try:
            read_image(path)
        except ValueError as error:
            bad.append(str(error))
        else:
            good.append(path)
    return good, bad
