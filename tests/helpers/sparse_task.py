"""A network with every kind of weight, and runs that train it sparse."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from pelk_mm.engine.hooks import DynamicSparsityHook
from tests.helpers.short_logs import short_logs


class SparseNet(BaseModel):
    """Ordinary and depthwise convolutions, a norm and linear layers.

    Args:
        overflow_at (Sequence[int]): Forward passes, from 0, whose loss is
            infinite. Default: ().
    """

    def __init__(self, overflow_at: Sequence[int] = (), **kwargs) -> None:
        super().__init__(**kwargs)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 5, padding=2, groups=8),
            nn.Flatten(),
            nn.Linear(8 * 6 * 6, 12),
        )
        self.head = nn.Linear(12, 4)
        self.overflow_at = set(overflow_at)
        self.passes = 0

    def forward(
        self, inputs: Tensor, label: Tensor, mode: str = 'tensor'
    ) -> dict[str, Tensor]:
        logits = self.head(self.backbone(inputs))
        loss = nn.functional.cross_entropy(logits, label)
        if self.passes in self.overflow_at:
            loss = loss * float('inf')
        self.passes += 1
        return dict(loss=loss)


@OPTIM_WRAPPERS.register_module()
class CPUScalerOptimWrapper(AmpOptimWrapper):
    """Loss scaling as for fp16, which mmengine offers on GPUs only."""

    def __init__(self, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)

    def optim_context(self, model):
        return OptimWrapper.optim_context(self, model)


def samples(count: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randn(3, 8, 8, generator=generator),
            label=int(torch.randint(4, (), generator=generator)),
        )
        for _ in range(count)
    ]


def make_runner(
    work_dir: str | Path,
    iters: int = 12,
    hook: Mapping | None = None,
    *,
    model: nn.Module | None = None,
    data: Sequence[dict] | None = None,
    optimizer: Mapping | None = None,
    wrapper: Mapping | None = None,
    hooks: Sequence[Mapping | Hook] = (),
    save_every: int = 1000,
    distributed: bool = False,
    **kwargs,
) -> Runner:
    """A runner on four samples an iteration; ``hook=None`` leaves it out."""
    torch.manual_seed(0)
    optimizer = optimizer or dict(type='AdamW', lr=1e-2, weight_decay=0.05)
    if hook is not None:
        # update_interval=3 with the share falling from 0.5 to 0 by the end.
        hooks = [
            *hooks,
            dict(
                dict(
                    type='DynamicSparsityHook', init='erk', update_interval=3
                ),
                **hook,
            ),
        ]
    cfg = dict(
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            device_ids=None,
        )
    )
    return Runner(
        model=model or SparseNet(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=data or samples(),
            batch_size=4,
            sampler=dict(type='InfiniteSampler', seed=0),
            collate_fn=dict(
                type='pseudo_collate' if data else 'default_collate'
            ),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(
            dict(type='OptimWrapper', optimizer=optimizer), **wrapper or {}
        ),
        default_hooks=dict(
            checkpoint=dict(
                type='SafeCheckpointHook', by_epoch=False, interval=save_every
            )
        ),
        custom_hooks=list(hooks),
        launcher='pytorch' if distributed else 'none',
        randomness=dict(seed=0),
        experiment_name=f'run{os.urandom(6).hex()}',
        cfg=Config(cfg),
        **kwargs,
    )


def train(work_dir: str | Path, *args, **kwargs) -> Runner:
    runner = make_runner(work_dir, *args, **kwargs)
    runner.train()
    return runner


def sparsity_hook(runner: Runner) -> DynamicSparsityHook:
    return next(h for h in runner.hooks if isinstance(h, DynamicSparsityHook))


def load(work_dir: str | Path, iters: int) -> dict:
    """A checkpoint, read as safely as torch can."""
    return torch.load(Path(work_dir) / f'iter_{iters}.pth', weights_only=True)


def differences(a, b, where: str = '') -> list[str]:
    """Where two nested states differ by so much as a bit."""
    if isinstance(a, Mapping):
        if a.keys() != b.keys():
            return [f'{where}: keys']
        return [d for k in a for d in differences(a[k], b[k], f'{where}/{k}')]
    if isinstance(a, (list, tuple)):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f'{where}/{i}')
        ]
    if isinstance(a, Tensor):
        same = (
            a.dtype == b.dtype
            and a.shape == b.shape
            and bool((a == b).all())
            and bool((a.signbit() == b.signbit()).all())
        )
    else:
        same = a == b
    return [] if same else [where]


def straight_and_resumed(work_dir: str, hook: dict, **kwargs) -> Runner:
    """Train 40 iterations in one go, and 20 + 20."""
    work_dir = Path(work_dir)
    hook = dict(hook, end=40)
    extra = dict(hooks=[dict(type='EMAHook', momentum=0.1)], **kwargs)
    train(work_dir / 'straight', 40, hook, save_every=20, **extra)
    train(work_dir / 'resumed', 20, hook, save_every=20, **extra)
    return train(
        work_dir / 'resumed', 40, hook, save_every=20, resume=True, **extra
    )


def in_two_processes(rank: int, rendezvous: str, function, *args) -> None:
    """Body of each process that ``torch.multiprocessing`` starts."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2
    )
    try:
        with short_logs():
            function(*args)
    finally:
        dist.destroy_process_group()
