"""What the demos of the three tasks do not share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.structures import BaseDataElement

from .pictures import Panel, colour_labels


@dataclass(frozen=True)
class Task:
    """A demo: what to train and how to show what it learned.

    Args:
        config (str): File in ``configs/``.
        metric (str): Name of the figure among the evaluator's.
        percent (bool): Whether the evaluator gives it in percent.
        examples (int): How many validation pictures to draw.
        panels (Callable): From a validation image ``(H, W, 3)`` uint8 RGB,
            its data sample with ground truth and prediction, and the data
            set's metainfo to the panels of its row.
        legend (bool): Whether to show the classes' colours.
    """

    config: str
    metric: str
    percent: bool
    examples: int
    panels: Callable[[np.ndarray, BaseDataElement, Mapping], Sequence[Panel]]
    legend: bool = True


def segmentation_panels(image: np.ndarray, sample: BaseDataElement,
                        meta: Mapping) -> list[Panel]:
    """The image, the true classes and the predicted ones, by colour."""
    palette = meta['palette']
    truth, prediction = (
        getattr(sample, name).data.squeeze(0).cpu().numpy()
        for name in ('gt_sem_seg', 'pred_sem_seg'))
    return [
        Panel(image, 'input'),
        Panel(colour_labels(truth, palette), 'ground truth'),
        Panel(colour_labels(prediction, palette), 'prediction')
    ]


def classification_panels(image: np.ndarray, sample: BaseDataElement,
                          meta: Mapping) -> list[Panel]:
    """The image under its true and its predicted class."""
    truth, prediction = int(sample.gt_label), int(sample.pred_label)
    score = float(sample.pred_score[prediction])
    verdict = '' if prediction == truth else ' (wrong)'
    return [
        Panel(
            image, f"true {meta['classes'][truth]}, predicted "
            f"{meta['classes'][prediction]} {score:.2f}{verdict}")
    ]


#: The demos by the name of their task.
TASKS = {
    'segmentation':
    Task(
        config='demo_upernet_pelk_digits.py',
        metric='mIoU',
        percent=True,
        examples=6,
        panels=segmentation_panels),
    'classification':
    Task(
        config='demo_pelk_digits.py',
        metric='accuracy/top1',
        percent=True,
        examples=20,
        panels=classification_panels,
        legend=False),
}
