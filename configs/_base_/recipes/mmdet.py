# What cascade_mask_rcnn_pelk_t_coco.py trains with, for configs of
# mmdetection:
#     _base_ = ['THE CONFIG', 'pelk_mm::pelk/_base_/recipes/mmdet.py']
#     model = _base_.pelk.model
#     optim_wrapper = _base_.pelk.optim_wrapper
#     param_scheduler = _base_.pelk.param_scheduler
#     train_cfg = _base_.pelk.train_cfg
# One name, since bases must not have any in common.
from mmengine.config import Config

ours = Config.fromfile(
    '{{ fileDirname }}/../../cascade_mask_rcnn_pelk_t_coco.py',
    import_custom_modules=False,
)
# Found by their scope where pelk_mm is not imported.
ours.model.backbone.type = 'pelk_mm.PeLK'
ours.optim_wrapper.constructor = 'pelk_mm.LayerDecayOptimWrapperConstructor'

pelk = dict(
    model=dict(
        backbone=dict(ours.model.backbone, _delete_=True),
        neck=dict(in_channels=ours.model.neck.in_channels),
    ),
    optim_wrapper=dict(ours.optim_wrapper, _delete_=True),
    param_scheduler=ours.param_scheduler,
    train_cfg=dict(ours.train_cfg, _delete_=True),
)
del Config, ours
