"""What the paper prints of its models' sizes, to hold ours against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's Tables 2, 3 and 4.

    Attributes:
        table (str): The task.
        model (str): The paper's name of the model.
        config (str): Our config of it, in ``configs/``.
        shape (tuple[int, int]): The image that FLOPs are counted for, in
            pixels.
        params (float | None): Parameters, in millions.
        gmacs (float): What the paper calls FLOPs, in 10^9
            multiply-accumulates.
    """

    table: str
    model: str
    config: str
    shape: tuple[int, int]
    params: float | None
    gmacs: float


_CLASSIFICATION = 'ImageNet-1K'
_SEGMENTATION = 'ADE20K, UperNet'
_DETECTION = 'COCO, Cascade Mask R-CNN'

PAPER_ROWS = (
    PaperRow(_CLASSIFICATION, 'PeLK-T', 'pelk_t_in1k.py', (224, 224), 29, 5.6),
    PaperRow(
        _CLASSIFICATION, 'PeLK-S', 'pelk_s_in1k.py', (224, 224), 50, 10.7
    ),
    PaperRow(
        _CLASSIFICATION, 'PeLK-B', 'pelk_b_in1k.py', (224, 224), 89, 18.3
    ),
    PaperRow(
        _CLASSIFICATION, 'PeLK-B', 'pelk_b_in1k_384.py', (384, 384), 89, 54.0
    ),
    PaperRow(
        _CLASSIFICATION,
        'PeLK-B-101',
        'pelk_b_101_in1k_384.py',
        (384, 384),
        90,
        68.3,
    ),
    PaperRow(
        _SEGMENTATION,
        'PeLK-T',
        'upernet_pelk_t_ade20k.py',
        (512, 2048),
        62,
        970,
    ),
    PaperRow(
        _SEGMENTATION,
        'PeLK-S',
        'upernet_pelk_s_ade20k.py',
        (512, 2048),
        84,
        1077,
    ),
    PaperRow(
        _SEGMENTATION,
        'PeLK-B',
        'upernet_pelk_b_ade20k.py',
        (512, 2048),
        126,
        1237,
    ),
    PaperRow(
        _SEGMENTATION,
        'PeLK-B-101',
        'upernet_pelk_b_101_ade20k.py',
        (512, 2048),
        126,
        1339,
    ),
    PaperRow(
        _DETECTION,
        'PeLK-T',
        'cascade_mask_rcnn_pelk_t_coco.py',
        (800, 1280),
        86,
        770,
    ),
    PaperRow(
        _DETECTION,
        'PeLK-S',
        'cascade_mask_rcnn_pelk_s_coco.py',
        (800, 1280),
        108,
        874,
    ),
    PaperRow(
        _DETECTION,
        'PeLK-B',
        'cascade_mask_rcnn_pelk_b_coco.py',
        (800, 1280),
        147,
        1028,
    ),
    PaperRow(
        _DETECTION,
        'PeLK-B-101',
        'cascade_mask_rcnn_pelk_b_101_coco.py',
        (800, 1280),
        147,
        1127,
    ),
)
