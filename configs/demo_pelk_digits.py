# A small PeLK, from scratch, tells handwritten digits: a few minutes on two
# CPU cores. `make demo-classification` makes the data and runs it. Its
# backbone is that of the other demos, which can start from its checkpoint.
_base_ = ['_base_/models/pelk.py', '_base_/schedules/imagenet_300e.py']

digits = tuple('0123456789')
data_preprocessor = dict(
    num_classes=10,
    # The channels are equal. The stem's LayerNorm keeps the direction of what
    # it is given and drops the length: only with unequal means is a flat light
    # patch another direction than a flat dark one.
    mean=[0.0, 127.5, 255.0],
    std=[127.5] * 3,
    to_rgb=True,
)
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            depths=(2, 2, 4, 2),
            channels=[32, 64, 128, 256],
            kernel_sizes=(31, 15, 9, 5),
        ),
        drop_path_rate=0.05,
        layer_scale_init_value=1.0,
        # ConvNeXt's std of 0.02 is meant for wider layers: so narrow ones
        # would hardly change what passes through them at first.
        init_cfg=dict(
            type='Kaiming',
            layer=['Conv2d', 'Linear'],
            mode='fan_in',
            nonlinearity='linear',
            distribution='normal',
        ),
    ),
    head=dict(in_channels=256, num_classes=10),
    # Two digits in one picture would be too much for so short a training.
    train_cfg=None,
)

# Pictures have 64 x 64 pixels. Colours say nothing about digits, and a
# mirrored 2 is not a 2: no colours and no flips.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.7, 1.0),
        aspect_ratio_range=(0.8, 1.25),
    ),
    dict(type='StretchedGrey'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=64, edge='short'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='StretchedGrey'),
    dict(type='PackInputs'),
]
dataset = dict(
    type='CustomDataset',
    data_root='data/digit_scenes/imagenet',
    metainfo=dict(classes=digits),
)
train_dataloader = dict(
    batch_size=25,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(**dataset, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(**dataset, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=1,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=8, val_interval=2)
custom_hooks = []
default_hooks = dict(
    logger=dict(interval=40), checkpoint=dict(interval=2, max_keep_ckpts=1)
)
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=25)
