# Segmentation, 160k iterations at a batch of 16, as ConvNeXt's recipe.
_base_ = '../default_runtime.py'

default_scope = 'mmseg'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05
    ),
    constructor='LayerDecayOptimWrapperConstructor',
    # 6 layers for T, 12 for S and B.
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)

param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500
    ),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=1500,
        end=160000,
    ),
]

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=160000, val_interval=16000
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000, save_best='mIoU'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=False)
visualizer = dict(
    type='SegLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)
# Crops have one size, so the search for the fastest kernels pays off.
env_cfg = dict(cudnn_benchmark=True)

# --auto-scale-lr scales the learning rate to the batch that is used.
auto_scale_lr = dict(enable=False, base_batch_size=16)
