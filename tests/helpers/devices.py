"""Tests that need a GPU, and what they do with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

#: Where what holds anywhere is tested; the GPU by `make test-gpu`.
DEVICES = ('cpu', pytest.param('cuda', marks=pytest.mark.gpu))


def captured(call: Callable) -> tuple[Callable[[], None], object]:
    """A replay of the call as a CUDA graph, and where its results appear."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


def distance(got: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Of all tensors at once, over the length of the true ones."""
    pairs = zip(got, truth, strict=True)
    error = sum((a.double() - b).square().sum() for a, b in pairs)
    length = sum(b.double().square().sum() for b in truth)
    return (error / length).sqrt().item()


def peak_memory(call: Callable) -> int:
    """Bytes that a call adds on the GPU, at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def require_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 1e9:
        pytest.skip(f'{free / 1e9:.0f} of {gigabytes} GB are free')
