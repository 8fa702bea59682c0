"""What structure_study.py found, in tables and pictures."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from structure_claims import CLAIMS, TASKS, Row, rows_of
from structure_scenes import STEP, STRIDE
from studies import difference

from pelk_mm.analysis.figures import FAINT, INK, SOFT, STRONG, save_figure

#: Distances from the bar that tables have columns of, in pixels.
RANGES = ((0, 32), (32, 64), (64, 112))


def accuracy(found: Mapping, least: int = 0, most: int | None = None) -> float:
    """Per cent right of the digits' positions, at some distance in pixels."""
    end = None if most is None else most // STEP
    part = slice(least // STEP, end)
    return 100 * sum(found['right'][part]) / sum(found['pixels'][part])


# Tables ---------------------------------------------------------------------


def compare(
    key: str, paces: Mapping[str, dict], found: Mapping[Row, list[dict]]
) -> list[dict]:
    """The tables of a claim, each the rows of one group on one task."""
    claim = CLAIMS[key]
    left = rows_of(claim, paces)
    tables = []
    for task, group in itertools.product(claim.tasks, claim.groups):
        lines = []
        for label in group:
            row = next(left)
            line = summarise(label, row, found[row])
            if claim.receptive_field:
                pair = line['reach_after'], line['reach_before']
                line['difference'] = difference(*pair, paired=True)
            elif lines:
                pair = line['accuracies'], lines[0]['accuracies']
                line['difference'] = difference(*pair)
            lines.append(line)
        tables.append(dict(claim=key, task=task, rows=lines))
    return tables


def summarise(label: str, row: Row, runs: list[dict]) -> dict:
    """A row of a table; lists have one figure a seed."""
    line = dict(
        label=label, steps=row.task.steps, lr=runs[0]['settings']['lr']
    )
    line.update({key: runs[0][key] for key in ('params', 'macs')})
    line['accuracies'] = [accuracy(run) for run in runs]
    if row.task.kind == 'bars':
        line['by_distance'] = {
            f'{least} to {most} px': [
                accuracy(run, least, most) for run in runs
            ]
            for least, most in RANGES
            if most <= row.task.size
        }
    for key in ('reach_before', 'reach_after'):
        line[key] = [run[key] for run in runs]
    seconds = statistics.median(run['cpu_seconds'] for run in runs)
    line['milliseconds_a_step'] = 1e3 * seconds / row.task.steps
    return line


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}'


def judged(line: Mapping) -> list[str]:
    """Difference, interval and verdict of a line; blank for the first."""
    apart = line.get('difference')
    if apart is None:
        return ['', '']
    interval = f'{apart["low"]:+.1f} to {apart["high"]:+.1f}'
    return [f'{apart["mean"]:+.1f} ({interval})', apart['verdict']]


def markdown_table(table: Mapping) -> str:
    claim, rows = CLAIMS[table['claim']], table['rows']
    if claim.receptive_field:
        heads = ['', 'before', 'after', 'difference', 'verdict']
        body = [
            [
                row['label'],
                *(spread(row[f'reach_{when}']) for when in heads[1:3]),
                *judged(row),
            ]
            for row in rows
        ]
    else:
        distances = list(rows[0].get('by_distance', ()))
        heads = ['', 'weights', 'M MACs', 'lr', 'steps', 'right', *distances]
        heads += ['difference', 'verdict']
        body = [
            [
                row['label'],
                f'{row["params"]:,}',
                f'{row["macs"] / 1e6:.0f}',
                f'{row["lr"]:g}',
                f'{row["steps"]}',
                spread(row['accuracies']),
                *(spread(row['by_distance'][key]) for key in distances),
                *judged(row),
            ]
            for row in rows
        ]
    lines = [heads, ['---'] * len(heads), *body]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


TEMPLATE = """# What is the structure of PeLK worth?

Right: per cent of the digits' positions, on test scenes. Means and standard \
deviations over seeds {seeds}. Differences are from the first row of a table, \
with the 95 % interval of Welch's t-test; "none" where it holds 0. Of \
{comparisons} such comparisons, {by_chance:.1f} would show a difference by \
chance alone. Weights are those that are not zero; MACs are counted with \
kernels executed dense.

{tables}

All trainings together took {cpu_minutes:.0f} minutes of CPU time. {cpu}, \
{cores} cores, one thread a run; Python {python}, torch {torch}, \
scipy {scipy}, pelk_mm {pelk_mm} ({commit}).

    {command}
"""


def write_up(tables: Iterable[Mapping]) -> str:
    """All tables, each claim under a heading."""
    parts = []
    for key, own in itertools.groupby(tables, lambda table: table['claim']):
        claim = CLAIMS[key]
        parts.append(f'## {claim.title}')
        if claim.receptive_field:
            parts.append(
                'Side in pixels of the centred square that holds half of the '
                'gradient of the last map to the picture; paired differences.'
            )
        for table in own:
            parts += [f'On {table["task"]}:', markdown_table(table)]
    return '\n\n'.join(parts)


# Pictures -------------------------------------------------------------------


def draw_differences(tables: Iterable[Mapping], path: Path) -> None:
    """Every comparison of accuracies: its interval, and whether it holds 0."""
    shown = [
        (table, row)
        for table in tables
        for row in table['rows']
        if 'difference' in row and not CLAIMS[table['claim']].receptive_field
    ]
    figure = Figure((8.5, 1 + 0.24 * len(shown)), layout='constrained')
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=0.8)
    names = []
    for height, (table, row) in enumerate(shown):
        apart = row['difference']
        color = FAINT if apart['verdict'] == 'none' else STRONG
        ends = [apart['low'], apart['high']]
        axes.plot(ends, [height] * 2, color=color, linewidth=2)
        axes.plot(apart['mean'], height, 'o', color=color, markersize=5)
        first = table['rows'][0]['label']
        names.append(f'{row["label"]} against {first}, {table["task"]}')
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel('points of accuracy, with 95 % interval', fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)
    save_figure(figure, path, dpi=150)


def draw_sizes(tables: Iterable[Mapping], path: Path) -> None:
    """Accuracy by kernel size for two map sizes, and by the bar's distance."""
    shown = [t for t in tables if t['claim'] in ('size', 'maps')]
    by_task = {t['task']: t['rows'] for t in shown}
    kinds = list(dict.fromkeys(task.split(',')[0] for task in by_task))
    figure = Figure((1 + 3.2 * (1 + len(kinds)), 3.4), layout='constrained')
    *panels, last = figure.subplots(1, 1 + len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        _draw_by_kernel(axes, kind, by_task)
    rows = by_task['bars']
    shades = np.linspace(0.75, 0, len(rows))
    for row, shade in zip(rows, shades, strict=True):
        means = [statistics.mean(v) for v in row['by_distance'].values()]
        label = row['label']
        last.plot(means, 'o-', color=str(shade), label=label)
    names = list(rows[0]['by_distance'])
    last.set_xticks(range(len(names)), names, fontsize=8)
    last.set_title('bars, by the distance from the bar', fontsize=10)
    last.legend(fontsize=8, frameon=False)
    for axes in (*panels, last):
        axes.spines[['top', 'right']].set_visible(False)
    figure.supylabel("digits' positions that are right, %", fontsize=9)
    save_figure(figure, path, dpi=150)


def _draw_by_kernel(axes: Axes, kind: str, by_task: Mapping) -> None:
    found = {n: rows for n, rows in by_task.items() if n.startswith(kind)}
    for (name, rows), color in zip(found.items(), (SOFT, STRONG), strict=True):
        x = range(len(rows))
        means = [statistics.mean(row['accuracies']) for row in rows]
        each = [row['accuracies'] for row in rows]
        positions = TASKS[name].size // STRIDE
        label = f'maps of {positions} × {positions}'
        axes.plot(x, means, color=color, label=label)
        axes.plot(x, each, '.', color=color, markersize=4)
    axes.set_xticks(x, [row['label'].split()[0] for row in rows])
    axes.set_xlabel('kernel size of the first stage', fontsize=9)
    axes.set_title(kind, fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw_fields(
    work_dir: Path, rows: list[Row], seeds: list[int], path: Path
) -> None:
    """Receptive fields before and after, means over seeds: a column a row."""
    figure = Figure((2.1 * len(rows), 4.8), layout='constrained')
    panels = figure.subplots(2, len(rows), squeeze=False)
    for column, row in zip(panels.T, rows, strict=True):
        folder = work_dir / 'runs' / row.folder
        fields = [np.load(folder / f'seed_{s}' / 'fields.npy') for s in seeds]
        for axes, field in zip(column, np.mean(fields, axis=0), strict=True):
            axes.imshow(np.log10(1 + 99 * field / field.max()), cmap='magma')
            axes.set(xticks=[], yticks=[])
        size = row.network.kernel_size
        title = f'{size} × {size}\n{row.task_name}'
        column[0].set_title(title, fontsize=9, color=INK)
    for axes, when in zip(panels[:, 0], ('before', 'after'), strict=True):
        axes.set_ylabel(f'{when} training', fontsize=9)
    save_figure(figure, path, dpi=150)
