"""The three demos in small and without chance, for distributed tests."""

from pathlib import Path

from tests.conftest import ROOT

#: Samples of a step of all processes together.
BATCH = 8
ITERS = 6

# With AdamW's own eps the smallest gradients make steps as large as others:
# their rounding grows from step to step, and their scale is not seen.
# Detection keeps it: there the choice of boxes makes rounding grow.
_COMMON = """
custom_imports = dict(
    imports=['pelk_mm', 'tests.helpers.rank_recorder'],
    allow_failed_imports=False)
custom_hooks = [dict(type='RankRecorder')]
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters={iters},
    val_interval=10000)
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
param_scheduler = [dict(type='ConstantLR', factor=1., by_epoch=False)]
optim_wrapper = dict(optimizer=dict(eps=1e-3))
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(
        by_epoch=False, interval=2, max_keep_ckpts=-1, save_best=None))
log_processor = dict(by_epoch=False)
small_arch = dict(
    _delete_=True,
    depths=(1, 1, 1, 1),
    channels=[16, 32, 48, 64],
    kernel_sizes=(13, 9, 7, 5))
"""

_CLASSIFICATION = """
_base_ = '{root}/configs/demo_pelk_digits.py'
model = dict(
    backbone=dict(
        arch=small_arch, drop_path_rate=0., small_kernel={small_kernel}),
    head=dict(in_channels=64))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_root='{data}/imagenet',
        pipeline={{{{_base_.test_pipeline}}}}))
"""

_SEGMENTATION = """
_base_ = '{root}/configs/demo_upernet_pelk_digits.py'
model = dict(
    backbone=dict(arch=small_arch, small_kernel={small_kernel}),
    decode_head=dict(
        in_channels=[16, 32, 48, 64], channels=32, norm_cfg={norm_cfg}),
    auxiliary_head=dict(
        in_channels=48, dropout_ratio=0., norm_cfg={norm_cfg}))
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='{data}/ade/ADEChallengeData2016',
        pipeline={{{{_base_.test_pipeline}}}}))
"""

# All anchors and proposals are taken, so that none is drawn by chance.
_DETECTION = """
_base_ = '{root}/configs/demo_cascade_mask_rcnn_pelk_digits.py'
everything = dict(type='RandomSampler', num=100000, pos_fraction=1.)
model = dict(
    backbone=dict(
        arch=small_arch, drop_path_rate=0., small_kernel={small_kernel},
        init_cfg=None),
    neck=dict(in_channels=[16, 32, 48, 64]),
    train_cfg=dict(
        rpn=dict(sampler=everything),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False),
                sampler=everything,
                mask_size=28,
                pos_weight=-1,
                debug=False) for iou in (0.5, 0.6, 0.7)
        ]))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=None))
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='{data}/coco/',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(type='StretchedGrey'),
            dict(type='PackDetInputs')
        ]))
"""

_TASKS = dict(
    classification=_CLASSIFICATION,
    segmentation=_SEGMENTATION,
    detection=_DETECTION,
)


def write_config(
    folder: Path, data: Path, task: str, *, batch_norm: bool
) -> Path:
    """A config of a task, with BatchNorm or with LayerNorm and the like only.

    Without its small kernel PeLK has no BatchNorm; the heads of the
    segmentation get GroupNorm. Neither knows of other samples.
    """
    text = (_COMMON + _TASKS[task]).format(
        root=ROOT,
        data=data,
        iters=ITERS,
        small_kernel=5 if batch_norm else None,
        norm_cfg=(
            dict(type='BN') if batch_norm else dict(type='GN', num_groups=4)
        ),
    )
    path = folder / f'{task}_{"bn" if batch_norm else "ln"}.py'
    path.write_text(text)
    return path
