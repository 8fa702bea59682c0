# As wide as PeLK-T, and no weight is zero.
_base_ = './pelk_t_in1k.py'

custom_hooks = [_base_.ema]
