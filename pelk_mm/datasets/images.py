"""Finding image files and telling whether they can be decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff',
                  '.ppm', '.pgm')


def find_images(folder: str | Path) -> Iterator[Path]:
    """Files that are named as images, subfolders included, in order.

    Args:
        folder (str | Path): Where to look. Links to folders are followed.

    Yields:
        Path: One after another, so that the first few cost little.
    """
    for path, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(path, name)


def check_image(path: str | Path) -> None:
    """Decode an image once, to the end.

    OpenCV, which the libraries load images with, returns the upper part of a
    truncated file without an error.

    Args:
        path (str | Path): Image file.

    Raises:
        ValueError: If it cannot be decoded; the message says why.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f'{path} is not an image') from error
    except FileNotFoundError as error:
        raise ValueError(f'there is no file {path}') from error
    except (OSError, SyntaxError, ValueError,
            Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be decoded: {error}') from error
