"""Batches and samples as a run will see them, without its workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from ...utils.sampling import evenly

#: Samples that are looked at: so many, as long as they take no longer.
_SAMPLES, _SECONDS = 32, 2.0


def first_batches(
    runner: Runner, loader: DataLoader, name: str, count: int
) -> Iterator[Any]:
    """The first batches of a loader, called ``name`` in the runner's config.

    They come from a second loader of the same data set: the sampler of a
    loader may go on where it was left, and its workers are busy already.
    Where the config does not say how to build one there are none.
    """
    config = runner.cfg.get(name)
    if isinstance(config, Mapping):
        config = dict(config, num_workers=0, persistent_workers=False)
        # The number of batches has been set for the data set that is given.
        for key in ('prefetch_factor', 'num_batch_per_epoch'):
            config.pop(key, None)
        # A function, as mmengine copies whatever else stands there.
        config['dataset'] = dict(type=lambda: loader.dataset)
        different = runner._randomness_cfg.get('diff_rank_seed', False)
        again = runner.build_dataloader(
            config, seed=runner.seed, diff_rank_seed=different
        )
        yield from islice(again, count)


def some_samples(dataset: Any) -> Iterator[Any]:
    """Samples at even distances, others on each rank."""
    ranks = get_world_size()
    places = evenly(range(len(dataset)), _SAMPLES * ranks)[get_rank() :: ranks]
    start = time.perf_counter()
    for place in places:
        if time.perf_counter() - start > _SECONDS:
            return
        yield dataset[int(place)]


def parts_of(dataset: Any) -> Iterator[Any]:
    """A data set and those within it, the innermost first."""
    inner = getattr(dataset, 'datasets', None)
    if not isinstance(inner, (list, tuple)):
        inner = [getattr(dataset, 'dataset', None)]
    for part in inner:
        if part is not None:
            yield from parts_of(part)
    yield dataset


def innermost(dataset: Any) -> list[Any]:
    """The data sets of which others are made."""
    every = list(parts_of(dataset))
    return [part for part in every if next(parts_of(part)) is part]


def elements(item: Any) -> Iterator[BaseDataElement]:
    """What the pipeline returned of labels, wherever it is in a batch."""
    if isinstance(item, BaseDataElement):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from elements(value)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from elements(value)
