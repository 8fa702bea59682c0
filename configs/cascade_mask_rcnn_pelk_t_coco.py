_base_ = [
    '_base_/models/cascade_mask_rcnn_pelk.py',
    '_base_/datasets/coco_instance_mstrain_crop.py',
    '_base_/schedules/coco_3x.py',
]

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.4),
    neck=dict(in_channels=[124, 249, 499, 998]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7, num_layers=6))
