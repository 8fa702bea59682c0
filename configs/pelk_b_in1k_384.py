_base_ = [
    '_base_/models/pelk.py',
    '_base_/datasets/imagenet_384.py',
    '_base_/schedules/imagenet_finetune_30e.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.8),
    head=dict(in_channels=1331),
    train_cfg=None,
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
load_from = 'work_dirs/pelk_b_in1k/epoch_300.pth'
