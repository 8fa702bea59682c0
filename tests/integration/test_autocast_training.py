"""Training in half precision: nothing turns NaN or Inf, and it learns."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from pelk_mm.utils.config import build_model
from pelk_mm.utils.output import quiet

#: PeLK-T's kernels in a network that trains in no time.
ARCH = dict(
    depths=(1, 1, 2, 1),
    channels=(16, 24, 32, 48),
    kernel_sizes=(51, 49, 47, 13),
)
#: The small model of each library, and the channels that follow the arch.
TASKS = {
    'classification': ('demo_pelk_digits', dict(head=dict(in_channels=48))),
    'segmentation': (
        'demo_upernet_pelk_digits',
        dict(
            decode_head=dict(in_channels=[*ARCH['channels']], channels=16),
            auxiliary_head=dict(in_channels=32, channels=16),
        ),
    ),
    'detection': (
        'demo_cascade_mask_rcnn_pelk_digits',
        dict(neck=dict(in_channels=[*ARCH['channels']])),
    ),
}
#: Maps of the four stages that are smaller than their kernels; and such that
#: the first two are wider than theirs one way and smaller the other way.
SIZES = [(64, 64), (384, 128)]
DTYPES = [torch.bfloat16, torch.float16]


def build(root, task: str, device: str) -> BaseModel:
    name, exchanged = TASKS[task]
    config = Config.fromfile(root / 'configs' / f'{name}.py')
    config.merge_from_dict(dict(model=exchanged))
    init_default_scope(config.default_scope)
    backbone = config.model.backbone
    backbone.update(arch=ARCH, layer_scale_init_value=1.0, drop_path_rate=0.1)
    if task == 'detection':  # its demo starts from another demo's weights
        backbone.init_cfg = None
    if task == 'segmentation':
        config.model.data_preprocessor.size = None
        config.model.data_preprocessor.size_divisor = 32
    model = revert_sync_batchnorm(build_model(config))
    with quiet():
        model.init_weights()
    return model.to(device).train()


def batch(task: str, size: tuple[int, int]) -> dict:
    """Two random pictures with something to learn in each."""
    height, width = size
    if task == 'classification':
        from mmpretrain.structures import DataSample

        return dict(
            inputs=torch.rand(2, 3, *size) * 255,
            data_samples=[DataSample().set_gt_label(i) for i in range(2)],
        )
    if task == 'detection':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2,
            [[3, *size]] * 2,
            num_classes=10,
            with_mask=True,
            num_items=[2, 2],
        )
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.arange(height)[:, None] * 11 // height + torch.zeros(
        1, width, dtype=torch.long
    )
    return dict(
        inputs=[
            torch.randint(0, 256, (3, *size), dtype=torch.uint8)
            for _ in range(2)
        ],
        data_samples=[
            SegDataSample(
                gt_sem_seg=PixelData(data=labels[None]),
                metainfo=dict(img_shape=size, ori_shape=size),
            )
            for _ in range(2)
        ],
    )


class Watch:
    """Looks at what every module returns.

    Args:
        model (nn.Module): Watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.step = 0
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda module, _, output, name=name: self.check(
                    f'output of {name or "the model"}', output
                )
            )

    def check(self, what: str, value: object) -> None:
        """Fail unless all numbers in nested tensors are finite."""
        if isinstance(value, Tensor):
            if value.is_floating_point() and not value.isfinite().all():
                pytest.fail(f'step {self.step}: {what} is not finite')
        elif isinstance(value, dict):
            for key, part in value.items():
                self.check(f'{what}: {key}', part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                self.check(what, part)


def train(
    model: BaseModel,
    data: dict,
    steps: int,
    device: str,
    dtype: torch.dtype,
    whole: bool,
) -> list[float]:
    """Plain steps under autocast with all numbers watched.

    mmengine's ``AmpOptimWrapper`` takes the same steps, but on GPUs only. The
    scale of float16's losses stays what it is: every step counts, none is
    skipped because of an overflow.

    Args:
        model (BaseModel): In training mode, on ``device``.
        data (dict): What a data loader would give, the same in every step.
        steps (int): How many.
        device (str): ``'cpu'`` or ``'cuda'``.
        dtype (torch.dtype): Of autocast.
        whole (bool): Whether all of the model is under autocast, or its
            backbone alone.

    Returns:
        list[float]: The loss of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(
        device,
        init_scale=2.0**10,
        growth_interval=10**9,
        enabled=dtype == torch.float16,
    )
    backbone = model.backbone
    if not whole:
        backbone.forward = torch.autocast(device, dtype)(backbone.forward)
    watch, losses, seen = Watch(model), [], []
    backbone.stages[0].blocks[0].conv.large.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    for watch.step in range(steps):
        batch = model.data_preprocessor(data, training=True)
        with torch.autocast(device, dtype, enabled=whole):
            loss, parts = model.parse_losses(
                model.loss(batch['inputs'], batch['data_samples'])
            )
        watch.check('loss', dict(parts))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        watch.check(
            'gradient',
            {name: value.grad for name, value in model.named_parameters()},
        )
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        watch.check('gradient norm', norm)
        scaler.step(optimizer)
        scaler.update()
        watch.check('state', model.state_dict())
        losses.append(loss.item())
    assert set(seen) == {dtype}
    return losses


def train_on_cpu(
    root, task: str, size: tuple[int, int], dtype: torch.dtype, steps: int
) -> list[float]:
    # mmcv's RoIAlign takes float32 alone on CPU, and torch's convolutions
    # take seconds in float16 there: then only the backbone is under autocast.
    whole = dtype == torch.bfloat16 and task != 'detection'
    return train(
        build(root, task, 'cpu'), batch(task, size), steps, 'cpu', dtype, whole
    )


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(
    ('task', 'size'),
    [
        ('classification', SIZES[0]),
        ('classification', SIZES[1]),
        ('segmentation', SIZES[0]),
        ('detection', SIZES[0]),
    ],
    ids=str,
)
def test_the_first_steps(task, size, dtype, root):
    losses = train_on_cpu(root, task, size, dtype, 3)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('task', TASKS)
def test_stays_finite_and_learns(task, size, dtype, root):
    losses = train_on_cpu(root, task, size, dtype, 200)
    assert min(losses[-10:]) < losses[0] * 0.5


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('task', TASKS)
def test_stays_finite_and_learns_on_a_gpu(task, size, dtype, root):
    losses = train(
        build(root, task, 'cuda'), batch(task, size), 200, 'cuda', dtype, True
    )
    assert min(losses[-10:]) < losses[0] * 0.5
