"""What configs of the distributed tests name: a hook and a sampler."""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS, HOOKS


@HOOKS.register_module()
class RankRecorder(Hook):
    """Each rank's process id, losses and, at the end, digests of its model.

    mmengine logs the loss of rank 0 alone; the loss of a step is the mean.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.path = os.path.join(runner.work_dir, f'rank{runner.rank}')
        self.losses = []
        with open(f'{self.path}.pid', 'w') as file:
            file.write(str(os.getpid()))

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ) -> None:
        self.losses.append(outputs['loss'].item())

    def after_train(self, runner) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        masks = {}
        for hook in runner.hooks:
            enforcer = getattr(hook, 'enforcer', None)
            if enforcer is not None:
                masks = enforcer.masks
        torch.save(
            dict(
                world_size=runner.world_size,
                losses=torch.tensor(self.losses, dtype=torch.float64),
                parameters=digests(dict(model.named_parameters())),
                buffers=digests(dict(model.named_buffers())),
                masks=digests(masks),
            ),
            f'{self.path}.pt',
        )


@HOOKS.register_module()
class LastBits(Hook):
    """Multiplies weights by 1 - 6e-8, 1 or 1 + 6e-8, a rounding, at random.

    What becomes of it shows how much of a difference says nothing.
    """

    def before_train(self, runner) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in runner.model.parameters():
            signs = torch.randint(-1, 2, parameter.shape, generator=generator)
            parameter.data.mul_(1 + 6e-8 * signs)


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: hashlib.sha256(
            tensor.detach().contiguous().numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors.items()
    }


@DATA_SAMPLERS.register_module()
class RankOrderSampler(InfiniteSampler):
    """One process sees the batches of several ranks, one after the other.

    mmengine's samplers deal indices out like cards: of every ``batch``, rank
    r gets number r, r + ranks, and so on. Together the ranks see what one
    process sees that has the whole batch.

    Args:
        ranks (int): How many to play.
        batch (int): Samples of a step of all of them.
    """

    def __init__(self, *args, ranks: int, batch: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ranks, self.batch = ranks, batch

    def __iter__(self) -> Iterator[int]:
        indices = super().__iter__()
        while True:
            step = list(islice(indices, self.batch))
            for rank in range(self.ranks):
                yield from step[rank :: self.ranks]
