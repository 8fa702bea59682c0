"""A run that is as it was before, whatever happened to it in between."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

#: What torch keeps in every module, apart from whether it trains.
_OF_TORCH = frozenset(vars(nn.Module())) - {'training'}
_SIMPLE = (type(None), bool, int, float, complex, str, bytes)


@contextmanager
def unchanged(
    model: nn.Module, wrapper: OptimWrapper | None, datasets: Iterable[Any]
) -> Iterator[None]:
    """Put back what the body changes, bit for bit.

    That is: parameters, buffers and gradients, attributes of modules that are
    plain values (counts, lists of them), the count of the optimizer wrapper,
    the pipelines of data sets, and the random states of Python, NumPy and
    torch on the CPU and the current GPU.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.callback(_keep_model(model))
        for one in wrappers(wrapper):
            stack.callback(setattr, one, '_inner_count', one._inner_count)
        for dataset in datasets:
            stack.enter_context(_own_pipeline(dataset))
        yield


def wrappers(wrapper: OptimWrapper | OptimWrapperDict | None) -> list:
    """The optimizer wrappers that count steps, of one or of several."""
    if isinstance(wrapper, OptimWrapperDict):
        wrapper = list(wrapper.values())
    each = wrapper if isinstance(wrapper, list) else [wrapper]
    return [one for one in each if hasattr(one, '_inner_count')]


@contextmanager
def _random_states() -> Iterator[None]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if cuda else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _keep_model(model: nn.Module) -> Any:
    """Take a copy of the model's state; what is returned puts it back."""
    tensors = [
        (tensor, tensor.detach().clone())
        for tensor in chain(model.parameters(), model.buffers())
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    modules = [(m, dict(m._buffers), _plain(vars(m))) for m in model.modules()]

    def put_back() -> None:
        for module, buffers, attributes in modules:
            module._buffers.clear()
            module._buffers.update(buffers)
            now = vars(module)
            for name, value in attributes.items():
                if name not in now or now[name] != value:
                    now[name] = value
        for tensor, value in tensors:
            tensor.data.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return put_back


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: copy.deepcopy(value)
        for name, value in attributes.items()
        if name not in _OF_TORCH and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, chain(value.keys(), value.values())))
    if isinstance(value, (list, tuple, set, deque)):
        return all(map(_is_plain, value))
    return isinstance(value, _SIMPLE)


@contextmanager
def _own_pipeline(dataset: Any) -> Iterator[None]:
    """A copy of the data set's pipeline, which may keep what it has seen."""
    pipeline = vars(dataset).get('pipeline')
    try:
        mine = copy.deepcopy(pipeline)
    except Exception:
        # It holds what cannot be copied, as an open file.
        mine = pipeline
    if pipeline is not None:
        dataset.pipeline = mine
    try:
        yield
    finally:
        if pipeline is not None:
            dataset.pipeline = pipeline
