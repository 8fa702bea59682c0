# configs/upernet_pelk_t_ade20k.py in mmengine's pure Python syntax: types are
# classes, which an editor finds, and bases are imported.
from mmengine.config import read_base

with read_base():
    from ._base_.datasets.ade20k import *
    from ._base_.default_runtime import *
    from ._base_.models.upernet_pelk import *

from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.models import EncoderDecoder, FCNHead, UPerHead
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.visualization import SegLocalVisualizer
from torch.optim import AdamW

from pelk_mm.engine import LayerDecayOptimWrapperConstructor
from pelk_mm.models import PeLK

# The data sets of the base have names, which are looked up here. Where all
# types are classes it may be None.
default_scope = 'mmseg'

model.merge(
    dict(
        type=EncoderDecoder,
        data_preprocessor=dict(type=SegDataPreProcessor),
        backbone=dict(type=PeLK, arch='tiny'),
        decode_head=dict(type=UPerHead, in_channels=[124, 249, 499, 998]),
        auxiliary_head=dict(type=FCNHead, in_channels=499),
    )
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor=LayerDecayOptimWrapperConstructor,
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type=PolyLR,
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=1500,
        end=160000,
    ),
]
train_cfg = dict(type=IterBasedTrainLoop, max_iters=160000, val_interval=16000)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)

default_hooks.merge(
    dict(
        logger=dict(log_metric_by_epoch=False),
        checkpoint=dict(by_epoch=False, interval=16000, save_best='mIoU'),
        visualization=dict(type=SegVisualizationHook),
    )
)
log_processor = dict(by_epoch=False)
visualizer = dict(
    type=SegLocalVisualizer,
    vis_backends=[dict(type=LocalVisBackend)],
    name='visualizer',
)
env_cfg.merge(dict(cudnn_benchmark=True))
auto_scale_lr = dict(enable=False, base_batch_size=16)
