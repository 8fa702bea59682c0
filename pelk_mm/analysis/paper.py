"""What the paper prints of its models' sizes, to hold ours against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of Tables 2 to 4: pixels, millions, 10^9 multiply-accumulates."""

    table: str
    shape: tuple[int, int]
    model: str
    config: str
    params: float
    gmacs: float


#: By task and shape: model, config, parameters, multiply-accumulates.
_TABLES = {
    ('ImageNet-1K', (224, 224)): [
        ('PeLK-T', 'pelk_t_in1k.py', 29, 5.6),
        ('PeLK-S', 'pelk_s_in1k.py', 50, 10.7),
        ('PeLK-B', 'pelk_b_in1k.py', 89, 18.3),
    ],
    ('ImageNet-1K', (384, 384)): [
        ('PeLK-B', 'pelk_b_in1k_384.py', 89, 54.0),
        ('PeLK-B-101', 'pelk_b_101_in1k_384.py', 90, 68.3),
    ],
    ('ADE20K, UperNet', (512, 2048)): [
        ('PeLK-T', 'upernet_pelk_t_ade20k.py', 62, 970),
        ('PeLK-S', 'upernet_pelk_s_ade20k.py', 84, 1077),
        ('PeLK-B', 'upernet_pelk_b_ade20k.py', 126, 1237),
        ('PeLK-B-101', 'upernet_pelk_b_101_ade20k.py', 126, 1339),
    ],
    ('COCO, Cascade Mask R-CNN', (800, 1280)): [
        ('PeLK-T', 'cascade_mask_rcnn_pelk_t_coco.py', 86, 770),
        ('PeLK-S', 'cascade_mask_rcnn_pelk_s_coco.py', 108, 874),
        ('PeLK-B', 'cascade_mask_rcnn_pelk_b_coco.py', 147, 1028),
        ('PeLK-B-101', 'cascade_mask_rcnn_pelk_b_101_coco.py', 147, 1127),
    ],
}

PAPER_ROWS = tuple(
    PaperRow(*setting, *row)
    for setting, rows in _TABLES.items()
    for row in rows
)
