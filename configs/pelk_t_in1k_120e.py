# The short schedule of the ablations.
_base_ = './pelk_t_in1k.py'

train_cfg = dict(max_epochs=120)
