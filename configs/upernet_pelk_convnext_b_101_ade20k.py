# ConvNeXt-B of ImageNet-21k, its kernels grown to 101 x 101.
# Any ConvNeXt of this size will do: another file, in any of the usual layouts,
# and its own mean and std.
_base_ = [
    '_base_/models/upernet_pelk.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
]

checkpoint = (
    'https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-base_3rdparty_in21k_20220124-13b83eec.pth'
)
model = dict(
    backbone=dict(
        arch='convnext-base-101',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained', checkpoint=checkpoint, prefix='backbone.'
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=12, scale_lr_by_cell_area=True)
)
