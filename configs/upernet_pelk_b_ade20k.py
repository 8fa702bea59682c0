_base_ = [
    '_base_/models/upernet_pelk.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
]

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[166, 332, 665, 1331]),
    auxiliary_head=dict(in_channels=665),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
