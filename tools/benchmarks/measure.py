"""Timing that is fair on a machine which does other things meanwhile."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def _after_the_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
CLOCKS['gpu'] = _after_the_gpu


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Where to measure, with what clock, and where to write it."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--json', help='write everything to this file, or add to it')
    add('--device', choices=('cpu', 'cuda'), default='cpu')
    add_clock(parser)
    return parser


def add_clock(parser: argparse.ArgumentParser) -> None:
    """With what clock to measure, and in how many threads."""
    add = parser.add_argument
    clock_help = "'cpu' with --threads 1 on a busy machine"
    add('--clock', choices=('wall', 'cpu'), default='wall', help=clock_help)
    add('--threads', type=int, help='default: all cores')


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Settle the threads, and let the clock wait for a GPU."""
    args = parser.parse_args()
    if args.clock == 'cpu' and args.threads != 1:
        why = 'threads that wait for others count as computing'
        parser.error(f'--clock cpu needs --threads 1: {why}')
    if args.device == 'cuda':
        if not torch.cuda.is_available():
            parser.error('torch sees no CUDA device')
        args.clock = 'gpu'
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def interleave(
    candidates: Mapping[Any, Callable[[], object]],
    rounds: int = 15,
    clock: str = 'wall',
    slice_s: float = 0.03,
    budget_s: float = 6.0,
    settle: bool = False,
) -> dict[Any, dict[str, float]]:
    """Time all candidates in turn, round after round.

    What disturbs one of them then disturbs them all, so ratios within one
    call are worth more than times. Fast ones are repeated within a round until
    ``slice_s`` is used, slow ones sit rounds out once they have used
    ``budget_s``. With ``settle`` a turn begins with a call that is not timed:
    what comes first after something large finds the caches full of that.

    ``clock='gpu'`` waits until the GPU is done. ``'cpu'`` is the time that the
    process spent computing: meaningful with one thread, and indifferent to
    other processes.
    """
    now = CLOCKS[clock]

    def seconds(call: Callable[[], object], repeats: int = 1) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return now() - start

    repeats, times = {}, {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    for name, call in candidates.items():  # warm up
        first = seconds(call)
        if first < slice_s:
            first = seconds(call)
        repeats[name] = max(1, int(slice_s / max(first, 1e-6)))
        if first > budget_s / 3:  # once is all that it gets
            times[name].append(first)
            spent[name] = budget_s
    for _ in range(rounds):
        for name, call in candidates.items():
            if spent[name] >= budget_s:
                continue
            if settle:
                spent[name] += seconds(call)
            elapsed = seconds(call, repeats[name])
            spent[name] += elapsed
            times[name].append(elapsed / repeats[name])
    return {
        name: {
            'median_ms': 1e3 * statistics.median(values),
            'best_ms': 1e3 * min(values),
            'rounds': len(values),
        }
        for name, values in times.items()
    }


def peak_memory(call: Callable[[], object], device: str = 'cpu') -> int:
    """Bytes that a call adds to what torch has allocated, at its peak."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    changes = []
    for event in events:
        args = event.get('args', {})
        if event['name'] == '[memory]' and args['Device Type'] == 0:
            changes.append((event['ts'], args['Ev Idx'], args['Bytes']))
    return max(0, *accumulate(change for *_, change in sorted(changes)))


def environment(clock: str) -> dict[str, object]:
    """Where and with what a measurement was made."""
    return {
        'cpu': _cpu_name(),
        **(_gpu() if clock == 'gpu' else {'gpu': None}),
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


def _gpu() -> dict[str, object]:
    import triton

    return {
        'gpu': torch.cuda.get_device_name(),
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'triton': triton.__version__,
    }


def _cpu_name() -> str:
    file = Path('/proc/cpuinfo')
    text = file.read_text() if file.exists() else ''
    found = re.search(r'model name\s*: (.+)', text)
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ['git', 'describe', '--always', '--dirty']
    options = dict(cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(command, text=True, **options).strip()
    return None


def command(script: str) -> str:
    """The command line of a script of this repository, as one types it."""
    root = Path(__file__).resolve().parents[2]
    words = ['python', str(Path(script).resolve().relative_to(root))]
    return shlex.join([*words, *sys.argv[1:]])


def show_environment(clock: str, **more: object) -> dict[str, object]:
    """Print and return :func:`environment` and whatever else matters."""
    where = {**environment(clock), 'command': command(sys.argv[0]), **more}
    print('\n'.join(f'{key}: {value}' for key, value in where.items()))
    return where


def earlier(path: str | None, what: str) -> dict:
    """What earlier runs have written under a key; empty if nothing."""
    file = Path(path or '')
    content = json.loads(file.read_text()) if file.is_file() else {}
    return content.get(what, {})


def judge(
    target: str, value: float, limit: float, at_least: bool = False
) -> dict[str, object]:
    """Hold a value against its limit."""
    met = value >= limit if at_least else value <= limit
    verdict = 'pass' if met else 'falls short'
    keys = 'target', 'value', 'limit', 'at_least', 'verdict'
    values = target, value, limit, at_least, verdict
    return dict(zip(keys, values, strict=True))


def print_targets(rows: Iterable[Mapping]) -> None:
    print()
    for row in rows:
        bound = 'at least' if row['at_least'] else 'at most'
        bound = f'{bound} {row["limit"]:g}'
        what = f'{row["verdict"]:12} {row["target"]}'
        print(f'{what}: {row["value"]:.3g} ({bound})')
