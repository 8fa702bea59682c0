# UperNet with a small PeLK, from scratch, on scenes of handwritten digits: a
# few minutes on two CPU cores. `make demo` makes the data and runs it.
_base_ = ['_base_/models/upernet_pelk.py', '_base_/schedules/ade20k_160k.py']

# Scenes have 128 x 128 pixels: after the stem 32 x 32, which the kernels of
# the first stage cover, as PeLK's do at 224 x 224.
scene_size = (128, 128)
channels = [32, 64, 128, 256]
# The heads' own std of 0.01 is meant for 512 channels. From 64, what tells the
# classes apart would begin so small that the other layers hardly learned.
seg_init = dict(type='Normal', std=0.2, override=dict(name='conv_seg'))

model = dict(
    # The channels are equal. The stem's LayerNorm keeps the direction of what
    # it is given and drops the length: only with unequal means is a flat light
    # patch another direction than a flat dark one.
    data_preprocessor=dict(
        mean=[0.0, 127.5, 255.0], std=[127.5] * 3, size=scene_size
    ),
    backbone=dict(
        arch=dict(
            _delete_=True,
            depths=(2, 2, 4, 2),
            channels=channels,
            kernel_sizes=(31, 15, 9, 5),
        ),
        drop_path_rate=0.0,
        # So few channels need larger weights than PeLK's default, a normal
        # of std 0.02: here the std is 1 / sqrt(fan in).
        init_cfg=dict(
            type='Kaiming',
            layer=['Conv2d', 'Linear'],
            a=1,
            mode='fan_in',
            nonlinearity='leaky_relu',
            distribution='normal',
        ),
    ),
    decode_head=dict(
        in_channels=channels,
        channels=64,
        dropout_ratio=0.0,
        num_classes=11,
        init_cfg=seg_init,
    ),
    auxiliary_head=dict(
        in_channels=channels[2], channels=32, num_classes=11, init_cfg=seg_init
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)

dataset = dict(
    type='BaseSegDataset',
    data_root='data/digit_scenes/ade/ADEChallengeData2016',
    metainfo=dict(
        classes=(
            'background',
            '0',
            '1',
            '2',
            '3',
            '4',
            '5',
            '6',
            '7',
            '8',
            '9',
        ),
        palette=[
            (64, 64, 64),
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
    ),
    reduce_zero_label=True,
)
# Colours say nothing about digits, and a mirrored 2 is not a 2: no colours and
# no flips.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='StretchedGrey'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=scene_size,
        ratio_range=(0.8, 1.25),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=scene_size),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='StretchedGrey'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# From scratch every layer learns at the full rate.
optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(_delete_=True, decay_rate=1.0)
)
max_iters = 1000
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
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
