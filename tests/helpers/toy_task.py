"""A task that trains in milliseconds, for tests of what runs around one."""

import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn


@DATASETS.register_module()
class ToyDataset(BaseDataset):
    """Vectors of three, to be told apart by the sign of their sum."""

    METAINFO = dict(classes=('negative', 'positive'))

    def __init__(self, length: int = 16, **kwargs) -> None:
        self.length = length
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.length, 3, generator=generator)
        return [
            dict(inputs=x, label=int(x.sum() > 0)) for x in inputs.unbind()
        ]


@MODELS.register_module()
class ToyModel(BaseModel):
    """Two linear layers with a norm between.

    One more takes no part, if ``unused``; rank ``fails_on`` cannot be trained.
    """

    def __init__(
        self, unused: bool = False, fails_on: int | None = None
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)
        if unused:
            self.unused = nn.Linear(3, 3)
        self.fails_on = fails_on

    def forward(self, inputs, label, mode='tensor', **kwargs):
        if self.fails_on == get_rank():
            raise RuntimeError('this rank fails')
        inputs = torch.stack(list(inputs))
        label = torch.as_tensor(label)
        logits = self.head(self.norm(self.hidden(inputs)).relu())
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, label))
        return [dict(hit=float(hit)) for hit in logits.argmax(1) == label]


@METRICS.register_module()
class ToyAccuracy(BaseMetric):
    """Share of the samples with the right sign."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [sample['hit'] for sample in data_samples]

    def compute_metrics(self, results) -> dict:
        return dict(accuracy=sum(results) / len(results))


TOY_CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['tests.helpers.toy_task'])
model = dict(type='ToyModel')
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyDataset'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'))
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyDataset'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'))
test_dataloader = val_dataloader
val_evaluator = dict(type='ToyAccuracy')
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-2))
param_scheduler = dict(type='PolyLR', by_epoch=False, end=6)
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=3),
    logger=dict(type='LoggerHook', interval=1))
randomness = dict(seed=0)
"""
