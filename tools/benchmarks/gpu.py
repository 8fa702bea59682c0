"""Time on a GPU: alone, with the host that feeds it, and of each kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
#: Seconds that one pass over the inputs takes at most, of several.
_PASS_S = 0.02
#: Seconds of steps in a row.
_STEPS_S = 0.5


def num_inputs(nbytes: int) -> int:
    """How many inputs of this size the second-level cache cannot hold."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return cache // nbytes + 1


def seconds(call: Call) -> float:
    """One call, and the wait for it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    calls: Sequence[Call], rounds: int, budget_s: float
) -> dict[str, object]:
    """Time what does the same on several inputs, one after the other.

    A captured graph of the calls is replayed, which times the GPU alone;
    ``'eager_ms'`` is what a call takes when the host launches it and
    ``'host_ms'`` what the host needs for that. What takes longer than a pass
    or cannot be captured is called only, and once if it is slow.

    Args:
        calls: Each on tensors of its own, so that no cache holds them.
        rounds: Most passes over the calls.
        budget_s: Seconds that the passes may take; there is always one.
    """
    first_s, again_s = seconds(calls[0]), seconds(calls[0])
    calls = calls[: max(1, int(_PASS_S / again_s))]
    rounds = max(1, min(rounds, int(budget_s / (again_s * len(calls)))))
    eager, host = _passes(_in_turn(calls), rounds)
    how, times = 'calls', eager
    replay = capture(calls) if again_s < _PASS_S else None
    if replay is not None:
        seconds(replay)
        how, (times, _) = 'graph', _passes(replay, rounds)
    return {
        'median_ms': statistics.median(times) / len(calls),
        'best_ms': min(times) / len(calls),
        'rounds': rounds,
        'timed': how,
        'inputs': len(calls),
        'eager_ms': statistics.median(eager) / len(calls),
        'host_ms': min(host) / len(calls),
        'first_s': first_s,
    }


def measure_step(
    step: Call, rounds: int, budget_s: float
) -> dict[str, object]:
    """Time a step of a training, which no step after it waits for.

    ``'gpu_ms'`` is what the GPU spends in its kernels, of which the longest
    are listed.
    """
    first_s = seconds(step)
    seconds(step)
    again_s = seconds(step)
    count = max(1, int(_STEPS_S / again_s))
    rounds = max(1, min(rounds, int(budget_s / (again_s * count))))
    times, _ = _passes(_in_turn([step] * count), rounds)
    # Alone: launches that have queued up make the host wait for the GPU.
    _, host = _passes(step, 3)
    rows = kernels(step, 3)
    return {
        'median_ms': statistics.median(times) / count,
        'best_ms': min(times) / count,
        'rounds': rounds,
        'host_ms': min(host),
        'first_s': first_s,
        'gpu_ms': sum(us for us, _ in rows.values()) / 1e3,
        'launches': sum(count for _, count in rows.values()),
        'kernels': dict(list(rows.items())[:12]),
    }


def show_step(entry: dict) -> None:
    """Print what :func:`measure_step` has found beside the time."""
    host, busy = entry['host_ms'], entry['gpu_ms']
    print(f'    first {entry["first_s"]:.1f} s, host {host:.1f} ms', end='')
    print(f', {entry["launches"]:.0f} kernels of {busy:.1f} ms, the longest:')
    for kernel, (us, count) in entry['kernels'].items():
        print(f'    {us:10.1f} us {count:4g} x {kernel[:60]}')


def _in_turn(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _passes(call: Call, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds between events around a call, and until it returned."""
    times, host = [], []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        call()
        end.record()
        host.append(1e3 * (time.perf_counter() - start))
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times, host


def capture(calls: Sequence[Call]) -> Call | None:
    """A replay of the calls as one CUDA graph; None where torch cannot.

    What they return lives as long as the graph does, so each has a place of
    its own. What they keep, such as gradients, is at the same place after
    each replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.stream(now), torch.cuda.graph(graph):
            results = [call() for call in calls]
    except RuntimeError as error:  # it waits for the GPU, or copies to it
        print(f'  no graph: {str(error).splitlines()[0]}')
        torch.cuda.synchronize()
        return None

    def replay() -> object:
        graph.replay()
        return results

    return replay


def kernels(call: Call, times: int = 10) -> dict[str, list[float]]:
    """Microseconds of each kernel in a call, and how often it runs there."""
    seconds(call)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        for _ in range(times):
            call()
        torch.cuda.synchronize()
    rows = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total
        if spent and str(event.device_type).endswith('CUDA'):
            rows[event.key[:90]] = [spent / times, event.count / times]
    return dict(sorted(rows.items(), key=lambda row: -row[1][0]))
