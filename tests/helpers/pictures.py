"""Pictures of every kind that a folder may hold, made on the spot."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
#: Smooth, so that JPEG keeps it; RGB.
PICTURE = np.stack([_X * 4, _Y * 5, (_X + _Y) * 2], -1).astype(np.uint8)


def _save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image, **options) -> bytes:
    return _save(image, 'JPEG', quality=97, subsampling=0, **options)


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return _jpeg(RGB, exif=exif)


def _png16(picture: np.ndarray) -> bytes:
    return cv2.imencode('.png', picture.astype(np.uint16) * 257)[1].tobytes()


def _grey(picture: np.ndarray) -> np.ndarray:
    grey = np.asarray(Image.fromarray(picture).convert('L'))
    return np.repeat(grey[..., None], 3, 2)


RGB = Image.fromarray(PICTURE)
_ALPHA = RGB.copy()
_ALPHA.putalpha(Image.fromarray((_X * 4).astype(np.uint8)))
_FRAMES = dict(save_all=True, append_images=[RGB.rotate(180)], duration=10)

#: Name: content, and the picture that has to come out of it.
GOOD: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    'rgb.jpg': (lambda: _jpeg(RGB), PICTURE),
    'cmyk.jpg': (lambda: _jpeg(RGB.convert('CMYK')), PICTURE),
    'cmyk.tif': (lambda: _save(RGB.convert('CMYK'), 'TIFF'), PICTURE),
    'grey.jpg': (lambda: _jpeg(RGB.convert('L')), _grey(PICTURE)),
    'grey.png': (lambda: _save(RGB.convert('L'), 'PNG'), _grey(PICTURE)),
    'grey16.png': (lambda: _png16(_grey(PICTURE)[..., 0]), _grey(PICTURE)),
    'rgb16.png': (lambda: _png16(PICTURE[..., ::-1]), PICTURE),
    'palette.png': (
        lambda: _save(RGB.quantize(256), 'PNG'),
        np.asarray(RGB.quantize(256).convert('RGB')),
    ),
    'rgba.png': (lambda: _save(_ALPHA, 'PNG'), PICTURE),
    # Turned by a quarter to the right, upside down, mirrored.
    'exif6.jpg': (lambda: _turned(6), np.rot90(PICTURE, -1)),
    'exif3.jpg': (lambda: _turned(3), np.rot90(PICTURE, 2)),
    'exif2.jpg': (lambda: _turned(2), PICTURE[:, ::-1]),
    'png named.jpg': (lambda: _save(RGB, 'PNG'), PICTURE),
    'animated.webp': (
        lambda: _save(RGB, 'WEBP', lossless=True, **_FRAMES),
        PICTURE,
    ),
}
#: Name: content, and what has to be said of it.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    'nothing.jpg': (lambda: b'', 'is not an image: it has 0 bytes'),
    'text.jpg': (lambda: b'<html>404</html>', 'is not an image'),
    'truncated.jpg': (lambda: _jpeg(RGB)[:-900], 'cannot be decoded'),
    'truncated.png': (lambda: _save(RGB, 'PNG')[:90], 'cannot be decoded'),
    'float.tif': (
        lambda: _save(
            Image.fromarray(PICTURE[..., 0].astype(np.float32)), 'TIFF'
        ),
        'is a TIFF file that OpenCV',
    ),
}


def animated_gif() -> bytes:
    """OpenCV reads GIF from some versions on."""
    return _save(RGB, 'GIF', **_FRAMES)


def write(folder: Path, *names: str) -> list[Path]:
    """Write some of them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        path = folder / name
        path.write_bytes({**GOOD, **BAD}[name][0]())
        paths.append(path)
    return paths


def write_odd_sizes(folder: Path) -> list[Path]:
    """1 x 1, 20000 x 1 and 1 x 20000 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, size in (
        ('one.png', (1, 1)),
        ('wide.png', (20000, 1)),
        ('tall.png', (1, 20000)),
    ):
        RGB.resize(size).save(folder / name)
        paths.append(folder / name)
    return paths
