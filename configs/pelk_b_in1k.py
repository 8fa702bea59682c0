_base_ = [
    '_base_/models/pelk.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=1331)
)
custom_hooks = [
    _base_.ema,
    dict(_base_.sparsity, prune_rate=0.3, update_interval=100),
]
