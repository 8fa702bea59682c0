# At 224 x 224 the larger kernel gains nothing by itself; this is where
# fine-tuning at 384 x 384 starts from.
_base_ = './pelk_t_in1k.py'

model = dict(backbone=dict(arch='tiny-101'))
