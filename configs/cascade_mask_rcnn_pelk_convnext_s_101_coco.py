# ConvNeXt-S of ImageNet-21k and 1k, its kernels grown to 101 x 101.
_base_ = './cascade_mask_rcnn_pelk_convnext_t_101_coco.py'

model = dict(
    backbone=dict(
        arch='convnext-small-101',
        drop_path_rate=0.6,
        init_cfg=dict(
            checkpoint=(
                'https://download.openmmlab.com/mmclassification/v0/convnext/'
                'convnext-small_in21k-pre_3rdparty_in1k_20221219-aeca4c93.pth'
            )
        ),
    )
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
