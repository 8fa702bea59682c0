# UperNet + PeLK-B-101 with the optimizer state sharded by DeepSpeed (ZeRO 1).
# DeepSpeed saves each checkpoint as a folder, by itself: a crash while it does
# may leave a torn one, and --resume needs the folder's name, and
# TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, as DeepSpeed reads it with pickle.
# EMAHook and DynamicSparsityHook do not go with it.
_base_ = '../upernet_pelk_b_101_ade20k.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=1))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
default_hooks = dict(checkpoint=dict(type='CheckpointHook'))
