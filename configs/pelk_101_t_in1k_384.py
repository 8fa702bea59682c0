# From PeLK-101-T at 224 x 224, or from PeLK-T with its kernels grown by
# tools/model_converters/grow_kernel.py.
_base_ = [
    '_base_/models/pelk.py',
    '_base_/datasets/imagenet_384.py',
    '_base_/schedules/imagenet_finetune_30e.py',
]

model = dict(
    backbone=dict(arch='tiny-101', drop_path_rate=0.1),
    head=dict(in_channels=998),
    train_cfg=None,
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=6))
load_from = 'work_dirs/pelk_101_t_in1k/epoch_300.pth'
