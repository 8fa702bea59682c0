"""What the demos of the three tasks do not share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from .pictures import Panel, colour_labels, draw_instances


@dataclass(frozen=True)
class Task:
    """A demo: what to train and how to show what it learned.

    ``metrics`` are the evaluator's, in percent or not. ``panels`` makes a row
    of a validation image ``(H, W, 3)`` uint8 RGB, its data sample and the data
    set's metainfo. ``after`` is the task whose demo makes the weights that
    this one starts from, ``needs_ops`` says whether mmcv has to be compiled.
    """

    config: str
    metrics: Sequence[str]
    percent: bool
    examples: int
    panels: Callable[[np.ndarray, BaseDataElement, Mapping], Sequence[Panel]]
    legend: bool = True
    after: str | None = None
    needs_ops: bool = False


def segmentation_panels(
    image: np.ndarray, sample: BaseDataElement, meta: Mapping
) -> list[Panel]:
    """The image, the true classes and the predicted ones, by colour."""
    palette = meta['palette']
    truth, prediction = (
        getattr(sample, name).data.squeeze(0).cpu().numpy()
        for name in ('gt_sem_seg', 'pred_sem_seg')
    )
    return [
        Panel(image, 'input'),
        Panel(colour_labels(truth, palette), 'ground truth'),
        Panel(colour_labels(prediction, palette), 'prediction'),
    ]


def classification_panels(
    image: np.ndarray, sample: BaseDataElement, meta: Mapping
) -> list[Panel]:
    """The image under its true and its predicted class."""
    truth, prediction = int(sample.gt_label), int(sample.pred_label)
    score = float(sample.pred_score[prediction])
    verdict = '' if prediction == truth else ' (wrong)'
    true, predicted = (meta['classes'][i] for i in (truth, prediction))
    caption = f'true {true}, predicted {predicted} {score:.2f}{verdict}'
    return [Panel(image, caption)]


#: Detections below it are not drawn.
_SCORE = 0.5


def detection_panels(
    image: np.ndarray, sample: BaseDataElement, meta: Mapping
) -> list[Panel]:
    """The image, the true instances and the detected ones."""
    truth, found = sample.gt_instances, sample.pred_instances
    found = found[found.scores >= _SCORE]
    masks = truth.masks
    if hasattr(masks, 'to_ndarray'):
        masks = masks.to_ndarray()
    boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
    names = meta['palette'], meta['classes']
    true = map(_numpy, (boxes, truth.labels, masks))
    detected = map(_numpy, (found.bboxes, found.labels, found.masks))
    scores = _numpy(found.scores)
    drawn = draw_instances(image, *detected, *names, scores)
    return [
        Panel(image, 'input'),
        Panel(draw_instances(image, *true, *names), 'ground truth'),
        Panel(drawn, f'detections, score at least {_SCORE}'),
    ]


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


#: The demos by the name of their task.
TASKS = {
    'segmentation': Task(
        config='demo_upernet_pelk_digits.py',
        metrics=('mIoU',),
        percent=True,
        examples=6,
        panels=segmentation_panels,
    ),
    'classification': Task(
        config='demo_pelk_digits.py',
        metrics=('accuracy/top1',),
        percent=True,
        examples=20,
        panels=classification_panels,
        legend=False,
    ),
    'detection': Task(
        config='demo_cascade_mask_rcnn_pelk_digits.py',
        metrics=('coco/bbox_mAP_50', 'coco/segm_mAP_50'),
        percent=False,
        examples=8,
        panels=detection_panels,
        after='classification',
        needs_ops=True,
    ),
}
