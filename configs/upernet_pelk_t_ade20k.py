_base_ = [
    '_base_/models/upernet_pelk.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
]

model = dict(
    backbone=dict(arch='tiny'),
    decode_head=dict(in_channels=[124, 249, 499, 998]),
    auxiliary_head=dict(in_channels=499),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=6))
