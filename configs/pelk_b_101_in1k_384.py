# From PeLK-B-101 at 224 x 224, or from PeLK-B with its kernels grown by
# tools/model_converters/grow_kernel.py.
_base_ = './pelk_b_in1k_384.py'

model = dict(backbone=dict(arch='base-101'))
load_from = 'work_dirs/pelk_b_101_in1k/epoch_300.pth'
