"""A small model of every task, as a training would leave it."""

import torch
from mmengine.config import Config
from torch.nn.modules.batchnorm import _BatchNorm

from pelk_mm.utils.config import build_model

BACKBONE = """dict(
        type='PeLK',
        arch=dict(
            depths=(1, 1, 1, 1), channels=(48, 24, 32, 48),
            kernel_sizes=(23, 13, 9, 5), center_radius=2),
        norm_cfg=dict(type='SyncBN'),
        layer_scale_init_value=1.0,
        init_cfg=dict(type='Pretrained', checkpoint='none.pth'),
        {more})"""


MAPS = 'out_indices=(0, 1, 2, 3)'


CONFIGS = dict(
    classifier="""
default_scope = 'mmpretrain'
data_preprocessor = dict(mean=[120, 110, 100], std=[60, 50, 40], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone="""
    + BACKBONE.format(more='')
    + """,
    head=dict(type='LinearClsHead', num_classes=5, in_channels=48))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
custom_hooks = [dict(type='EMAHook')]
""",
    segmentor="""
default_scope = 'mmseg'
norm = dict(type='SyncBN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[0.] * 3, std=[255.] * 3,
        bgr_to_rgb=True),
    backbone="""
    + BACKBONE.format(more=MAPS)
    + """,
    decode_head=dict(
        type='UPerHead', in_channels=[48, 24, 32, 48], in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6), channels=8, num_classes=4, norm_cfg=norm,
        align_corners=False),
    auxiliary_head=dict(
        type='FCNHead', in_channels=32, in_index=2, channels=4, num_convs=1,
        num_classes=4, norm_cfg=norm),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32)))
""",
    detector="""
default_scope = 'mmdet'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.] * 3, std=[255.] * 3),
    backbone="""
    + BACKBONE.format(more=MAPS)
    + """,
    neck=dict(
        type='FPN', in_channels=[48, 24, 32, 48], out_channels=8, num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=8, stacked_convs=1,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=4,
            scales_per_octave=1, strides=[4, 8, 16, 32, 64])))
""",
)


@torch.no_grad()
def train(config: Config) -> dict:
    """A checkpoint that no part of starts at the identity."""
    torch.manual_seed(0)
    model = build_model(config)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-1, 1)
    for name, parameter in model.named_parameters():
        if name.endswith('pos_embed'):
            parameter.uniform_(-1, 1)
    return dict(
        meta=dict(
            epoch=3,
            dataset_meta=dict(classes=('a', 'b')),
            cfg='work_dir = "/home/somebody"',
        ),
        state_dict={
            f'module.{name}': value
            for name, value in model.state_dict().items()
        },
        optimizer=dict(state={}),
    )
