# ImageNet-1K from scratch: 300 epochs at a batch of 4096, as ConvNeXt's
# recipe, sparse from the start as SLaK's.
_base_ = '../default_runtime.py'

default_scope = 'mmpretrain'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05
    ),
    # At a rate of 1 all depths learn alike. It is taken for its groups: norms,
    # biases, LayerScale and positional embeddings without weight decay.
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
)

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    # To the last epoch, whichever that is.
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# BatchNorm's statistics are averaged too: the averaged weights are another
# network than the one that they were gathered with.
ema = dict(type='EMAHook', momentum=1e-4, update_buffers=True)
# PeLK-T's; S and B exchange fewer weights, but more often.
sparsity = dict(
    type='DynamicSparsityHook',
    sparsity=0.4,
    init='snip',
    prune_rate=0.5,
    update_interval=2000,
    # Every 2-D and 4-D weight, the classifier's too.
    include='.',
)
custom_hooks = [ema, sparsity]

default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=False),
)
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
# Crops have one size, so the search for the fastest kernels pays off.
env_cfg = dict(cudnn_benchmark=True)

# --auto-scale-lr scales the learning rate to the batch that is used.
auto_scale_lr = dict(enable=False, base_batch_size=4096)
