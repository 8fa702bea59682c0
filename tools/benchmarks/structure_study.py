"""What is the structure of PeLK worth? Nine claims, on tasks of digits.

For each claim small networks are trained from scratch that differ in one
thing, with several seeds. Every network takes the best of the same three
learning rates. Finished runs are kept: an interrupted study goes on with the
next one. Writes tables, pictures and all figures to
RESULTS/structure_study.{md,json} and PICTURES/structure_*.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import interleave
from structure_claims import CLAIMS, TASKS, Row, rows_of
from structure_report import (
    TEMPLATE,
    accuracy,
    compare,
    draw_differences,
    draw_fields,
    draw_sizes,
    write_up,
)
from structure_scenes import SPLITS, load_scenes
from structure_training import examine, step_timer, try_rate
from studies import (
    add_folders,
    earlier_run,
    kept_runs,
    make_parser,
    processes,
    provenance,
    write_results,
)

from pelk_mm.utils.files import atomic_path, check_writable, write_json

ROOT = Path(__file__).resolve().parents[2]

LEARNING_RATES = (3e-3, 1e-2, 3e-2)
#: Of the runs that choose between them.
TRIAL_SEED = 100


class Job(NamedTuple):
    """A training; without a seed, the choice of a learning rate."""

    row: Row
    lr: float
    seed: int | None

    @property
    def settings(self) -> dict:
        """What the result depends on, as JSON gives it back."""
        name, task, network = self.row
        settings = dict(
            task=dict(asdict(task), name=name),
            network=asdict(network),
            lr=self.lr,
            seed=self.seed,
        )
        return json.loads(json.dumps(settings))


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    claims_help = 'only these claims'
    add(
        '--claims', nargs='+', choices=CLAIMS, default=CLAIMS, help=claims_help
    )
    text = 'show what would run, and about how long, and stop'
    add('--dry-run', action='store_true', help=text)
    add_folders(parser, 'structure_study')
    pictures = str(ROOT / 'docs' / 'assets')
    add('--pictures', default=pictures, help='folder of the pictures')
    args = parser.parse_args()
    if len(set(args.seeds)) < 2:
        parser.error('--seeds needs two or more: a spread is asked for')
    return args


def measure_paces(work_dir: Path) -> dict[str, dict[str, float]]:
    """CPU milliseconds a step of the rows that have equal time, once."""
    claim = CLAIMS['ratio']
    (group,) = claim.groups
    rows = {
        name: {
            label: Row(name, TASKS[name], network)
            for label, network in group.items()
        }
        for name in claim.tasks
    }
    folder = work_dir / 'paces'
    settings = {
        f'{name}, {label}': Job(row, 0, None).settings
        for name, own in rows.items()
        for label, row in own.items()
    }
    kept = earlier_run(folder, settings)
    if 'paces' not in kept:
        kept['paces'] = {
            name: time_steps(own, work_dir) for name, own in rows.items()
        }
        write_json(folder / 'run.json', kept)
    return kept['paces']


def time_steps(
    rows: Mapping[str, Row], work_dir: Path, rounds: int = 60
) -> dict[str, float]:
    """CPU milliseconds that a training step of each row takes."""
    torch.set_num_threads(1)
    scenes = work_dir / 'scenes'
    steps = {
        label: step_timer(row.network, row.task, scenes)
        for label, row in rows.items()
    }
    times = interleave(steps, rounds, clock='cpu', settle=True)
    return {label: found['median_ms'] for label, found in times.items()}


def train_once(job: Job, work_dir: Path) -> dict:
    """Train and measure once, unless that was done before."""
    torch.set_num_threads(1)
    row, lr, seed = job
    name = f'rate_{lr:g}' if seed is None else f'seed_{seed}'
    folder = work_dir / 'runs' / row.folder / name
    found = earlier_run(folder, job.settings)
    if 'right' not in found:
        about = row.network, row.task, lr
        scenes = work_dir / 'scenes'
        if seed is None:
            found.update(try_rate(*about, TRIAL_SEED, scenes))
        else:
            figures, both = examine(*about, seed, scenes)
            found.update(figures)
            with atomic_path(folder / 'fields.npy') as path:
                np.save(path, both)
        write_json(folder / 'run.json', found)
    score = f'{accuracy(found):.1f} %, {found["cpu_seconds"]:.0f} s'
    print(f'{row.folder} {name}: {score}', flush=True)
    return found


def study(
    rows: list[Row], seeds: Iterable[int], workers: int, work_dir: Path
) -> dict[Job, dict]:
    """Choose each row's learning rate, then train it with every seed."""
    for task in {row.task for row in rows}:
        for split in SPLITS:
            load_scenes(task, split, work_dir / 'scenes')
    with processes(workers) as pool:

        def all_of(jobs: list[Job]) -> dict[Job, dict]:
            futures = {
                job: pool.submit(train_once, job, work_dir) for job in jobs
            }
            return {job: future.result() for job, future in futures.items()}

        tried = all_of(
            [Job(row, lr, None) for row in rows for lr in LEARNING_RATES]
        )
        best = {
            row: max(
                LEARNING_RATES,
                key=lambda lr, row=row: accuracy(tried[Job(row, lr, None)]),
            )
            for row in rows
        }
        return tried | all_of(
            [Job(row, best[row], seed) for seed in seeds for row in rows]
        )


def show_plan(rows: list[Row], seeds: list[int], work_dir: Path) -> None:
    """Print what would run, and how long it takes on an idle core."""
    paces = time_steps({row.folder: row for row in rows}, work_dir, rounds=5)
    total = 0.0
    for row in rows:
        pace = paces[row.folder]
        trainings = len(seeds) + len(LEARNING_RATES) * row.task.trial
        minutes = pace * row.task.steps * trainings / 6e4
        total += minutes
        print(
            f'{row.folder}: {row.task.steps} steps of {pace:.0f} ms, '
            f'{minutes:.1f} min'
        )
    trainings = len(rows) * (len(seeds) + len(LEARNING_RATES))
    print(f'{trainings} trainings, {total:.0f} minutes of CPU time')


def main() -> None:
    args = parse_args()
    work_dir, pictures = Path(args.work_dir), Path(args.pictures)
    for folder in (work_dir, args.results, pictures):
        check_writable(folder)
    paces = measure_paces(work_dir) if 'ratio' in args.claims else {}
    rows = {key: list(rows_of(CLAIMS[key], paces)) for key in args.claims}
    # What several claims ask for is trained once.
    each = list(dict.fromkeys(itertools.chain(*rows.values())))
    if args.dry_run:
        show_plan(each, args.seeds, work_dir)
        return
    runs = study(each, args.seeds, args.workers, work_dir)
    report(args, rows, paces, runs)


def report(
    args: argparse.Namespace,
    rows: Mapping[str, list[Row]],
    paces: Mapping[str, dict],
    runs: Mapping[Job, dict],
) -> None:
    """Write tables, figures and pictures of all that was asked for."""
    found: dict[Row, list[dict]] = {}
    for job, run in runs.items():
        if job.seed is not None:
            found.setdefault(job.row, []).append(run)
    tables = [table for key in rows for table in compare(key, paces, found)]
    lines = itertools.chain(*(table['rows'] for table in tables))
    comparisons = sum('difference' in line for line in lines)
    about = dict(
        provenance(__file__, 'scipy'),
        seeds=args.seeds,
        comparisons=comparisons,
        by_chance=comparisons / 20,
        cpu_minutes=sum(r['cpu_seconds'] for r in runs.values()) / 60,
        paces=paces,
        tables=tables,
    )
    seeds = ', '.join(map(str, args.seeds))
    text = dict(about, seeds=seeds, tables=write_up(tables))
    path = Path(args.results, 'structure_study')
    everything = dict(about, runs=list(runs.values()))
    write_results(path, everything, TEMPLATE.format(**text))
    pictures = Path(args.pictures)
    draw_differences(tables, pictures / 'structure_differences.png')
    if 'size' in rows:
        draw_sizes(tables, pictures / 'structure_sizes.png')
    if 'field' in rows:
        fields_path = pictures / 'structure_fields.png'
        draw_fields(
            Path(args.work_dir), rows['field'], args.seeds, fields_path
        )


if __name__ == '__main__':
    with kept_runs():
        main()
