"""Timing that is fair on a machine which does other things meanwhile."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def _after_the_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS = {
    'wall': time.perf_counter,
    'cpu': time.process_time,
    'gpu': _after_the_gpu,
}


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to measure, and with what clock."""
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--clock',
        choices=('wall', 'cpu'),
        default='wall',
        help="'cpu' with --threads 1 on a busy machine",
    )
    parser.add_argument('--threads', type=int, help='default: all cores')


def set_device(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    """Settle the threads, and let the clock wait for a GPU."""
    if args.clock == 'cpu' and args.threads != 1:
        parser.error(
            '--clock cpu needs --threads 1: threads that wait for '
            'others count as computing'
        )
    if args.device == 'cuda':
        if not torch.cuda.is_available():
            parser.error('torch sees no CUDA device')
        args.clock = 'gpu'
    if args.threads:
        torch.set_num_threads(args.threads)


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    clock: str = 'wall',
    slice_s: float = 0.03,
    budget_s: float = 6.0,
    settle: bool = False,
) -> dict[str, dict[str, float]]:
    """Time all candidates in turn, round after round.

    What disturbs one of them then disturbs them all, so ratios within one
    call are worth more than times. Fast ones are repeated within a round until
    ``slice_s`` is used, slow ones sit rounds out once they have used
    ``budget_s``.

    Args:
        candidates (Mapping): What to call, by name.
        rounds (int): How often each is timed, at most. Default: 15.
        clock (str): ``'wall'``, ``'gpu'`` for the same once the GPU is done,
            or ``'cpu'`` for the time that the process spent computing:
            meaningful with one thread, and indifferent to other processes
            taking turns. Default: ``'wall'``.
        slice_s (float): Seconds per turn. Default: 0.03.
        budget_s (float): Seconds per candidate, all in all. Default: 6.
        settle (bool): Whether a turn begins with a call that is not timed.
            What comes first after something large finds the caches full of
            that, which would count against the one whose turn it is.
            Default: False.

    Returns:
        dict: For each name ``median_ms``, ``best_ms`` and ``rounds``.
    """
    now = CLOCKS[clock]
    repeats, times = {}, {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    for name, call in candidates.items():  # warm up
        start = now()
        call()
        first = now() - start
        if first < slice_s:
            start = now()
            call()
            first = now() - start
        repeats[name] = max(1, int(slice_s / max(first, 1e-6)))
        if first > budget_s / 3:  # once is all that it gets
            times[name].append(first)
            spent[name] = budget_s
    for _ in range(rounds):
        for name, call in candidates.items():
            if spent[name] >= budget_s:
                continue
            turn = now()
            if settle:
                call()
            start = now()
            for _ in range(repeats[name]):
                call()
            elapsed = now() - start
            spent[name] += now() - turn
            times[name].append(elapsed / repeats[name])
    return {
        name: {
            'median_ms': 1e3 * statistics.median(values),
            'best_ms': 1e3 * min(values),
            'rounds': len(values),
        }
        for name, values in times.items()
    }


def peak_memory(call: Callable[[], object], device: str = 'cpu') -> int | None:
    """Bytes that a call adds at its peak; None if unknown.

    To the process, or to what torch has allocated on a GPU.
    """
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        # Memory that was freed but not given back would hide what is taken.
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # forget the last peak
        before = _status('VmRSS')
        call()
        return max(0, _status('VmHWM') - before)
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f'no {field} in /proc/self/status')


def environment(clock: str) -> dict[str, object]:
    """Where and with what a measurement was made."""
    return {
        'cpu': _cpu_name(),
        'gpu': torch.cuda.get_device_name() if clock == 'gpu' else None,
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'clock': clock,
        'load': list(os.getloadavg()),
        'capability': torch.backends.cpu.get_cpu_capability(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'system': platform.platform(),
        'commit': _commit(),
    }


def _cpu_name() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_json(path: str | Path | None) -> dict:
    """What an earlier run has written; empty if nothing has been."""
    if path is None or not Path(path).exists():
        return {}
    return json.loads(Path(path).read_text())


def write_json(path: str | Path, content: object) -> None:
    """Write a whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps(content, indent=1) + '\n')
    temporary.replace(path)
