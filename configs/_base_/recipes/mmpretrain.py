# What pelk_t_in1k.py trains with, for configs of mmpretrain:
#     _base_ = ['THE CONFIG', 'pelk_mm::pelk/_base_/recipes/mmpretrain.py']
#     model = _base_.pelk.model
#     optim_wrapper = _base_.pelk.optim_wrapper
#     param_scheduler = _base_.pelk.param_scheduler
#     train_cfg = _base_.pelk.train_cfg
#     custom_hooks = _base_.pelk.custom_hooks
#     auto_scale_lr = _base_.pelk.auto_scale_lr
# One name, since bases must not have any in common.
from mmengine.config import Config

ours = Config.fromfile(
    '{{ fileDirname }}/../../pelk_t_in1k.py', import_custom_modules=False
)
# Found by their scope where pelk_mm is not imported.
ours.model.backbone.type = 'pelk_mm.PeLK'
ours.optim_wrapper.constructor = 'pelk_mm.LayerDecayOptimWrapperConstructor'
ours.custom_hooks[1].type = 'pelk_mm.DynamicSparsityHook'

pelk = dict(
    model=dict(
        neck=None,
        backbone=dict(ours.model.backbone, _delete_=True),
        head=dict(ours.model.head, _delete_=True),
        train_cfg=ours.model.train_cfg,
    ),
    optim_wrapper=dict(ours.optim_wrapper, _delete_=True),
    param_scheduler=ours.param_scheduler,
    train_cfg=dict(ours.train_cfg, _delete_=True),
    custom_hooks=ours.custom_hooks,
    auto_scale_lr=ours.auto_scale_lr,
)
del Config, ours
