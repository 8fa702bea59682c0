# ConvNeXt-B of ImageNet-21k, its kernels grown to 101 x 101.
_base_ = './upernet_pelk_convnext_t_101_ade20k.py'

model = dict(
    backbone=dict(
        arch='convnext-base-101',
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint=(
                'https://download.openmmlab.com/mmclassification/v0/convnext/'
                'convnext-base_3rdparty_in21k_20220124-13b83eec.pth'
            )
        ),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
