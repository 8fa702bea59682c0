"""What a training holds, as it goes on, and AMP on a CPU: for configs."""

import json
import os
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPERS

from tests.helpers.sparse_task import CPUScalerOptimWrapper


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(CPUScalerOptimWrapper):
    """Autocast and loss scaling, which mmengine offers on GPUs only."""

    def optim_context(self, model):
        return torch.autocast('cpu', torch.bfloat16)


def held() -> dict[str, float]:
    """Memory of this process in MiB, its open files and its threads."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return dict(
        memory=pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
        files=len(os.listdir('/proc/self/fd')),
        threads=len(os.listdir('/proc/self/task')),
    )


@HOOKS.register_module()
class ResourceRecorder(Hook):
    """Adds lines of what is held to ``resources.jsonl`` of the work dir.

    Args:
        leak (int): Bytes that each iteration loses. Default: 0.
    """

    priority = 'LOWEST'

    def __init__(self, leak: int = 0) -> None:
        self.leak, self.lost = leak, []

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ) -> None:
        self.lost.append(b'\1' * self.leak)
        if self.every_n_train_iters(runner, 10):
            line = dict(held(), iter=runner.iter + 1)
            with open(Path(runner.work_dir, 'resources.jsonl'), 'a') as file:
                file.write(json.dumps(line) + '\n')
