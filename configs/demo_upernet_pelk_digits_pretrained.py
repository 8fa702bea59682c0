# The demo of segmentation, but started from the classification demo's weights
# (`make demo-classification` makes them), with layer-wise decay.
_base_ = './demo_upernet_pelk_digits.py'

model = dict(
    backbone=dict(
        init_cfg=dict(
            _delete_=True,
            type='Pretrained',
            checkpoint='work_dirs/demo_pelk_digits/epoch_8.pth',
            prefix='backbone.',
        )
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6)
)
