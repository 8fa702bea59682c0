"""From an image file to a network's input, without a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from .images import read_image


@dataclass(frozen=True)
class Preprocessor:
    """How an image becomes a network's input."""

    size: int | Sequence[int]  # height and width to resize to, in pixels
    mean: Sequence[float] = (123.675, 116.28, 103.53)  # of colours, 0 to 255
    std: Sequence[float] = (58.395, 57.12, 57.375)
    rgb: bool = True  # whether red comes first

    @classmethod
    def from_config(
        cls, config: Config, size: int | Sequence[int]
    ) -> Preprocessor:
        """The normalisation of a config, ImageNet's where it has none."""
        found = config.get('data_preprocessor') or {}
        found = {**found, **(config.model.get('data_preprocessor') or {})}
        if found.get('mean') is None or found.get('std') is None:
            return cls(size)
        rgb = found.get('to_rgb', found.get('bgr_to_rgb', False))
        return cls(size, tuple(found['mean']), tuple(found['std']), rgb)

    def __call__(self, path: str | Path) -> Tensor:
        """Read an image as ``(1, 3, H, W)``, float32."""
        image = read_image(path)
        size = np.broadcast_to(self.size, 2)[::-1].tolist()
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        if self.rgb:
            image = image[..., ::-1]
        image = (image.astype(np.float32) - self.mean) / self.std
        planes = image.transpose(2, 0, 1)[None]
        return torch.from_numpy(np.ascontiguousarray(planes, np.float32))
