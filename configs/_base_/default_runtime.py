# What the three tasks share. A task's schedule builds on this file and adds
# its default_scope, its visualizer, and whether to count epochs.
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds that a process waits for the others before the run ends.
    dist_cfg=dict(backend='nccl', timeout=1800),
)

log_level = 'INFO'
load_from = None
resume = False
# A seed of None draws one, prints it, and gives it to all processes.
randomness = dict(seed=None, deterministic=False)
