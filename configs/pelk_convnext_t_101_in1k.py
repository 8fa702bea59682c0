# ConvNeXt-T as it was trained on ImageNet-21k and 1k, its head too, with its
# kernels grown to 101 x 101, and 30 epochs of fine-tuning at a batch of 512.
_base_ = [
    '_base_/models/pelk.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_finetune_30e.py',
]

model = dict(
    backbone=dict(arch='convnext-tiny-101', drop_path_rate=0.1),
    head=dict(in_channels=768),
    train_cfg=None,
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=6, scale_lr_by_cell_area=True)
)
# It has no zeros to keep.
custom_hooks = []
load_from = (
    'https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-tiny_in21k-pre_3rdparty_in1k_20221219-7501e534.pth'
)
