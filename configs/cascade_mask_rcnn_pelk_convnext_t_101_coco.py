# ConvNeXt-T of ImageNet-21k and 1k, its kernels grown to 101 x 101.
# Any ConvNeXt of this size will do: another file, in any of the usual layouts,
# and its own mean and std.
_base_ = [
    '_base_/models/cascade_mask_rcnn_pelk.py',
    '_base_/datasets/coco_instance_mstrain_crop.py',
    '_base_/schedules/coco_3x.py',
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
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        decay_rate=0.7, num_layers=6, scale_lr_by_cell_area=True
    )
)
