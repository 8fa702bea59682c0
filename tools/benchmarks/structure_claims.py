"""The claims of structure_study.py, and what is trained for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import NamedTuple

from structure_scenes import Task
from structure_training import Network

_DEEPER = dict(depths=(1, 1, 1), scenes=(1600, 100, 200))
TASKS = {
    'digits': Task('scenes', 80, steps=230, trial=1.0),
    'bars': Task('bars', 112, steps=120, trial=1.0),
    'digits, small maps': Task('single', 64, steps=200, **_DEEPER),
    'digits, large maps': Task('single', 112, steps=200, **_DEEPER),
    'bars, small maps': Task('bars', 64, steps=120, trial=1.0),
}
PAPER = Network()


class Claim(NamedTuple):
    """Rows that a claim of the paper is about."""

    title: str
    #: In each the first network is what the others are held against.
    groups: tuple[dict[str, Network], ...]
    tasks: tuple[str, ...] = ('digits',)
    equal_time: bool = False  # the first network's, and not its steps
    receptive_field: bool = False  # is measured, and not the accuracy


def varied(**names_and_values: dict[str, object]) -> dict[str, Network]:
    """Networks that differ from the paper's in one field."""
    ((field, values),) = names_and_values.items()
    return {
        name: replace(PAPER, **{field: value})
        for name, value in values.items()
    }


_SIZES = {
    f'{size} × {size}': replace(PAPER, kernel_size=size)
    for size in (7, 13, 31, 51, 101)
}
CLAIMS = {
    'sharing': Claim(
        'Sharing costs nothing',
        tuple(
            {
                f'dense {size} × {size}': replace(
                    PAPER, kernel_size=size, cells='single'
                ),
                f'peripheral {size} × {size}': replace(
                    PAPER, kernel_size=size
                ),
            }
            for size in (13, 31)
        ),
        tasks=('digits', 'bars'),
    ),
    'cells': Claim(
        'Growing cells beat equal ones',
        (varied(cells={'growing cells': 'growing', 'equal cells': 'equal'}),),
        tasks=('digits', 'bars'),
    ),
    'centre': Claim(
        'The fine centre matters',
        (
            varied(
                center_radius={
                    f'centre of {2 * r + 1} × {2 * r + 1}': r
                    for r in (2, 0, 1, 3)
                }
            ),
            {
                f'centre of {2 * r + 1} × {2 * r + 1}, no small branch': (
                    replace(PAPER, center_radius=r, small_kernel=0)
                )
                for r in (2, 0)
            },
        ),
    ),
    'size': Claim(
        'Larger kernels help where maps are larger',
        (_SIZES,),
        tasks=('bars, small maps', 'bars'),
    ),
    'maps': Claim(
        'The same where a digit grows with the map',
        (_SIZES,),
        tasks=('digits, small maps', 'digits, large maps'),
    ),
    'embedding': Claim(
        'The positional embedding helps',
        (
            varied(
                pos_embed={
                    'behind the BatchNorms': 'behind',
                    'before the BatchNorm': 'before',
                    'without': 'none',
                }
            ),
        ),
    ),
    'ratio': Claim(
        'Three eighths of the channels are enough, at equal time',
        (varied(conv_ratio={'3/8': 3 / 8, '1/8': 1 / 8, 'all': 1.0}),),
        equal_time=True,
    ),
    'sparsity': Claim(
        '40 % of zeros at 1.3 times the width beat a dense network',
        (
            {
                'dense': PAPER,
                '40 % zeros, 1.3 times as wide': replace(
                    PAPER, width=int(1.3 * PAPER.width), sparsity=0.4
                ),
            },
        ),
    ),
    'branch': Claim(
        'The small branch helps',
        (
            varied(
                small_kernel={
                    '5 × 5': 5,
                    '3 × 3': 3,
                    'no branch': 0,
                    'no branch and no BatchNorm': None,
                }
            ),
        ),
    ),
    'field': Claim(
        'The receptive field grows with training',
        ({name: _SIZES[name] for name in ('7 × 7', '51 × 51', '101 × 101')},),
        tasks=('bars',),
        receptive_field=True,
    ),
}


class Row(NamedTuple):
    """What is trained with every seed."""

    task_name: str
    task: Task
    network: Network

    @property
    def folder(self) -> str:
        """A name of its own."""
        other = {
            field.name: getattr(self.network, field.name)
            for field in fields(Network)
            if getattr(self.network, field.name) != field.default
        }
        words = [f'{key}={value}' for key, value in other.items()]
        name = f'{self.task_name}/{",".join(words) or "paper"}'
        return name.replace(' ', '_')


def rows_of(claim: Claim, paces: Mapping[str, dict]) -> Iterator[Row]:
    """A claim's rows; ``paces`` are seconds a step where time is equal."""
    for name, group in itertools.product(claim.tasks, claim.groups):
        task = TASKS[name]
        first = next(iter(group))
        for label, network in group.items():
            steps = task.steps
            if claim.equal_time:
                pace = paces[name]
                steps = round(steps * pace[first] / pace[label])
            yield Row(name, replace(task, steps=steps), network)
