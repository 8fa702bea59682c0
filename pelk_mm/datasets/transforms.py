"""A transform for the pipelines of the libraries."""

from __future__ import annotations

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class StretchedGrey(BaseTransform):
    """Take the colours away and stretch the rest from black to white.

    For pictures whose colours and contrast say nothing about what is in them,
    such as digit scenes; a model then need not learn that.

    Required and modified key: ``img``, ``(H, W, 3)`` uint8 BGR. The three
    channels are equal afterwards.
    """

    def transform(self, results: dict) -> dict:
        image = results['img']
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ValueError(
                'StretchedGrey takes images (H, W, 3) of uint8, got '
                f'{image.shape} of {image.dtype} from '
                f'{results.get("img_path")}; load them with '
                "LoadImageFromFile's color_type='color'"
            )
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        grey = cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX)
        results['img'] = np.repeat(grey[..., None], 3, axis=2)
        return results
