# ConvNeXt-T of ImageNet-21k and 1k, its kernels grown to 101 x 101.
# Any ConvNeXt of this size will do: another file, in any of the usual layouts,
# and its own mean and std.
_base_ = [
    '_base_/models/upernet_pelk.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
]

model = dict(
    backbone=dict(
        arch='convnext-tiny-101',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=(
                'https://download.openmmlab.com/mmclassification/v0/convnext/'
                'convnext-tiny_in21k-pre_3rdparty_in1k_20221219-7501e534.pth'
            ),
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=6, scale_lr_by_cell_area=True)
)
