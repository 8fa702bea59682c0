# UperNet + PeLK-B-101 with parameters, gradients and optimizer state sharded
# over the processes, block by block. Checkpoints hold whole weights, as
# without FSDP. EMAHook and DynamicSparsityHook do not go with it.
_base_ = '../upernet_pelk_b_101_ade20k.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FullStateFSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', auto_wrap_policy='wrap_pelk_blocks'
    ),
)
