"""What studies share: many runs side by side, kept, and a table of them."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from measure import command, environment
from scipy import stats

import pelk_mm
from pelk_mm.utils.files import atomic_path, write_json


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """With which seeds to run, and how many at a time."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--workers', type=int, default=2, help='runs side by side')
    return parser


def add_folders(parser: argparse.ArgumentParser, study: str) -> None:
    """Where runs and results go, of a study that keeps its runs."""
    work_help = 'folder of data, logs and finished runs, which are kept'
    work_dir = f'work_dirs/{study}'
    parser.add_argument('--work-dir', default=work_dir, help=work_help)
    results = str(Path(__file__).with_name('results'))
    text = 'folder of the table'
    parser.add_argument('--results', default=results, help=text)


def kernel_sizes(first: int) -> list[int]:
    """Halved from stage to stage, as the maps are, and 7 at least."""
    return [2 * max(3, first // 2 >> stage) + 1 for stage in range(4)]


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A process for each of several runs at a time.

    With one thread a run: two runs side by side take less time than two
    threads a run, and the figures do not depend on how many run. What has
    not begun when the body ends, or fails, is not begun any more.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context('spawn'),
        # Ctrl-C goes to all processes: these have nothing to say about it.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def kept_runs() -> Iterator[None]:
    """End a study in one line where it is interrupted or cannot write."""
    # `kill` is to do what Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    again = 'finished runs are kept: the same command goes on with the next'
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(f'interrupted; {again}') from None
    except OSError as error:
        raise SystemExit(f'error: {error}; {again}') from None
    finally:
        signal.signal(signal.SIGTERM, before)


def earlier_run(folder: Path, settings: dict) -> dict:
    """A run that was finished before with these settings, or its beginning."""
    done = folder / 'run.json'
    run = json.loads(done.read_text()) if done.is_file() else {}
    return run if run.get('settings') == settings else dict(settings=settings)


def difference(
    values: Sequence[float], base: Sequence[float], paired: bool = False
) -> dict[str, object]:
    """How much larger the mean of some values is, and whether it is.

    With the 95 % interval of Welch's t-test, or, of pairs, of the paired one;
    the verdict is 'none' where it holds 0.
    """
    test = (
        stats.ttest_rel(values, base)
        if paired
        else stats.ttest_ind(values, base, equal_var=False)
    )
    low, high = map(float, test.confidence_interval(0.95))
    verdict = 'more' if low > 0 else 'less' if high < 0 else 'none'
    mean = statistics.mean(values) - statistics.mean(base)
    return dict(mean=mean, low=low, high=high, verdict=verdict)


def provenance(script: str, *packages: str) -> dict[str, object]:
    """Where, with what and by what command a study was made."""
    return dict(
        environment('cpu'),
        **{name: import_module(name).__version__ for name in packages},
        pelk_mm=pelk_mm.__version__,
        command=command(script),
    )


def write_results(path: Path, everything: Mapping, table: str) -> None:
    """Write PATH.json and PATH.md, and print the latter."""
    write_json(path.with_suffix('.json'), dict(everything))
    with atomic_path(path.with_suffix('.md')) as temporary:
        temporary.write_text(table)
    print(table)
