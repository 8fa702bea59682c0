# ConvNeXt-T with stripes of 51 x 5 and 5 x 51, as in SLaK, for kernels. Not
# SLaK: to draw its receptive field beside others, not to train.
custom_imports = dict(imports=['pelk_mm.analysis.stripe_convnext'])
default_scope = 'mmpretrain'

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='StripeConvNeXt', arch='tiny'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=768),
)
