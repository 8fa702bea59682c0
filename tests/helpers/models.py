"""Small models of every task."""

#: A backbone with every part, in small.
ARCH = dict(
    depths=(1, 1, 2, 1),
    channels=(8, 12, 16, 20),
    kernel_sizes=(13, 11, 9, 7),
    center_radius=2,
)


DENSE = dict(type='PeLK', arch=ARCH, out_indices=(0, 1, 2, 3))


CLASSIFIER = dict(
    default_scope='mmpretrain',
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='PeLK', arch=ARCH),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=20),
    ),
)


SEGMENTOR = dict(
    default_scope='mmseg',
    model=dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=DENSE,
        decode_head=dict(
            type='FCNHead',
            in_channels=20,
            in_index=3,
            channels=4,
            num_convs=1,
            num_classes=3,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    ),
)


#: How a RetinaNet is trained.
RETINA_TRAIN_CFG = dict(
    assigner=dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0
    ),
    sampler=dict(type='PseudoSampler'),
    allowed_border=-1,
    pos_weight=-1,
)


DETECTOR = dict(
    default_scope='mmdet',
    model=dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=DENSE,
        neck=dict(
            type='FPN',
            in_channels=list(ARCH['channels']),
            out_channels=8,
            num_outs=4,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            stacked_convs=1,
            feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=4,
                scales_per_octave=1,
                strides=[4, 8, 16, 32],
            ),
        ),
    ),
)

#: A classifier for the tools that take a config file.
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PeLK', arch=dict(
        depths=(1, 1, 2, 1), channels=(8, 12, 16, 20),
        kernel_sizes=(13, 11, 9, 7), center_radius=2)),
    head=dict(type='LinearClsHead', num_classes={classes}, in_channels=20))
"""
