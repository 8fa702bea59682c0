# What upernet_pelk_t_ade20k.py trains with, for configs of mmsegmentation:
#     _base_ = ['THE CONFIG', 'pelk_mm::pelk/_base_/recipes/mmseg.py']
#     model = _base_.pelk.model
#     optim_wrapper = _base_.pelk.optim_wrapper
#     param_scheduler = _base_.pelk.param_scheduler
#     train_cfg = _base_.pelk.train_cfg
# One name, since bases must not have any in common.
from mmengine.config import Config

ours = Config.fromfile(
    '{{ fileDirname }}/../../upernet_pelk_t_ade20k.py',
    import_custom_modules=False,
)
# Found by their scope where pelk_mm is not imported.
ours.model.backbone.type = 'pelk_mm.PeLK'
ours.optim_wrapper.constructor = 'pelk_mm.LayerDecayOptimWrapperConstructor'

pelk = dict(
    model=dict(
        pretrained=None,
        backbone=dict(ours.model.backbone, _delete_=True),
        decode_head=dict(in_channels=ours.model.decode_head.in_channels),
        auxiliary_head=dict(in_channels=ours.model.auxiliary_head.in_channels),
    ),
    optim_wrapper=dict(ours.optim_wrapper, _delete_=True),
    param_scheduler=ours.param_scheduler,
    train_cfg=dict(ours.train_cfg, _delete_=True),
)
del Config, ours
