# Cascade Mask R-CNN with a small PeLK on scenes of handwritten digits, started
# from the classification demo's weights: some minutes on two CPU cores.
# `make demo-detection` makes data and weights and runs it.
_base_ = [
    '_base_/models/cascade_mask_rcnn_pelk.py',
    '_base_/schedules/coco_3x.py',
]

# Scenes have 128 x 128 pixels: after the stem 32 x 32, which the kernels of
# the first stage cover, as PeLK's do at 224 x 224.
scene_size = (128, 128)
channels = [32, 64, 128, 256]
width = 64  # of the FPN and of what follows it

# Digits are 16 to 72 pixels high and higher than wide; levels up to stride 32
# with anchors of four strides cover them.
strides = [4, 8, 16, 32]
model = dict(
    data_preprocessor=dict(mean=[0.0, 127.5, 255.0], std=[127.5] * 3),
    backbone=dict(
        arch=dict(
            _delete_=True,
            depths=(2, 2, 4, 2),
            channels=channels,
            kernel_sizes=(31, 15, 9, 5),
        ),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/demo_pelk_digits/epoch_8.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=channels, out_channels=width, num_outs=len(strides)),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4], ratios=[1.0, 2.0], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=width
        ),
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=width,
                conv_out_channels=width // 2,
                fc_out_channels=128,
                roi_feat_size=7,
                num_classes=10,
                norm_cfg=dict(type='BN'),
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_stds=list(stds)
                ),
                reg_class_agnostic=True,
                reg_decoded_bbox=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for stds in (
                (0.1, 0.1, 0.2, 0.2),
                (0.05, 0.05, 0.1, 0.1),
                (0.033, 0.033, 0.067, 0.067),
            )
        ],
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=width
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width // 2,
            num_classes=10,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=64),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                ),
                sampler=dict(type='RandomSampler', num=24, pos_fraction=0.5),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=64), rcnn=dict(max_per_img=20)
    ),
)

data_root = 'data/digit_scenes/coco/'
metainfo = dict(
    classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (0, 130, 200),
        (245, 130, 48),
        (145, 30, 180),
        (70, 240, 240),
        (240, 50, 230),
        (210, 245, 60),
        (250, 190, 212),
    ],
)
# Colours say nothing about digits, and a mirrored 2 is not a 2: no colours and
# no flips.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomResize',
        scale=scene_size,
        ratio_range=(0.8, 1.4),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=scene_size, allow_negative_crop=False),
    dict(type='StretchedGrey'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scene_size, keep_ratio=True),
    dict(type='StretchedGrey'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
)
test_evaluator = val_evaluator

max_iters = 300
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=150,
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    clip_grad=dict(max_norm=10),
    paramwise_cfg=dict(decay_rate=0.8, num_layers=5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=50,
        end=max_iters,
    ),
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=150)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
