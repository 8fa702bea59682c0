# PeLK-T as a classifier. A config sets arch, in_channels and drop_path_rate.
model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',
    backbone=dict(
        type='PeLK',
        arch='tiny',
        drop_path_rate=0.1,
        layer_scale_init_value=1e-6,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=998,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        ),
    ),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ]
    ),
)
