"""What studies share: many runs side by side, kept, and a table of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from measure import command, environment

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


def processes(workers: int) -> ProcessPoolExecutor:
    """A process for each of several runs at a time.

    With one thread a run: two runs side by side take less time than two
    threads a run, and the figures do not depend on how many run.
    """
    return ProcessPoolExecutor(workers, mp_context=get_context('spawn'))


def earlier_run(folder: Path, settings: dict) -> dict:
    """A run that was finished before with these settings, or its beginning."""
    done = folder / 'run.json'
    run = json.loads(done.read_text()) if done.is_file() else {}
    return run if run.get('settings') == settings else dict(settings=settings)


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
