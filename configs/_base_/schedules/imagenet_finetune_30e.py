# Fine-tuning at a larger resolution: 30 epochs at a batch of 512, no Mixup
# or CutMix, layer-wise decay, as ConvNeXt's recipe; as sparse as the network
# comes. A config sets load_from, num_layers and model.train_cfg=None.
_base_ = './imagenet_300e.py'

optim_wrapper = dict(
    optimizer=dict(lr=5e-5, weight_decay=1e-8),
    # 6 layers for T, 12 for S and B.
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
)

param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=0,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(max_epochs=30)

# A dense checkpoint takes `--cfg-options custom_hooks=[]`.
custom_hooks = [
    dict(
        type='DynamicSparsityHook',
        init='zeros',
        update_interval=None,
        include='.',
    )
]
auto_scale_lr = dict(base_batch_size=512)
