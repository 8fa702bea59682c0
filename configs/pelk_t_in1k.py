_base_ = [
    '_base_/models/pelk.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
]

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1), head=dict(in_channels=998)
)
