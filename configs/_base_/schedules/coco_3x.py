# Detection, 36 epochs of COCO at a batch of 16, as ConvNeXt's recipe.
_base_ = '../default_runtime.py'

default_scope = 'mmdet'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    # 6 layers for T, 12 for S and B.
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
)

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000
    ),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=36,
        milestones=[27, 33],
        gamma=0.1,
    ),
]

default_hooks = dict(
    checkpoint=dict(save_best='coco/segm_mAP'),
    visualization=dict(type='DetVisualizationHook'),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer',
)

# --auto-scale-lr scales the learning rate to the batch that is used.
auto_scale_lr = dict(enable=False, base_batch_size=16)
