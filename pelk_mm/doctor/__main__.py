"""Prints what an environment is made of and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..distributions import ROWS, installed, providers
from .checks import TROUBLE, examine
from .survey import report, survey


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m pelk_mm.doctor',
        description=__doc__,
        epilog='Exit status: 0 if all is well, 1 if there is trouble.',
    )
    parser.add_argument(
        '--json', action='store_true', help='print JSON, for scripts'
    )
    parser.add_argument(
        '--has-room-for',
        metavar='ROW',
        choices=ROWS,
        help='only say whether a row of packages '
        f'({" or ".join(ROWS)}) can be installed here without overwriting '
        'the files of another',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.has_room_for:
        return _has_room_for(args.has_room_for)
    print(
        'trying what is installed, and compiling what has to be; this takes '
        'up to some minutes',
        file=sys.stderr,
    )
    environment = survey()
    found = report(environment, examine(environment))
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0 if found['ok'] else 1


def as_text(found: dict[str, Any]) -> str:
    """The report as one reads it."""
    lines = [
        f'pelk_mm {found["pelk_mm"]} in {found["where"]}',
        f'Python {found["python"]}, {found["platform"]}',
        f'compiler: {found["compiler"] or "none"}',
        f'CUDA: torch {found["cuda"]["torch"] or "without"}, mmcv '
        f'{found["cuda"]["mmcv"] or "without"}',
    ]
    for gpu in found['gpus']:
        capability = '.'.join(map(str, gpu['capability']))
        lines.append(
            f'GPU: {gpu["name"]}, capability {capability}, '
            f'{gpu["memory_gib"]} GiB'
        )
    if not found['gpus']:
        lines.append(
            f'GPU: torch sees none, the driver {len(found["gpus_of_driver"])}'
        )
    lines += [
        '',
        'packages, row ' + (' and '.join(found['row']) or 'not installed'),
    ]
    lines += [
        f'  {name:24}{version}' for name, version in found['versions'].items()
    ]
    lines += [
        '',
        'mmcv.ops: ' + ('run' if found['mmcv_ops'] else 'do not run'),
    ]
    for device, backends in found['backends'].items():
        lines += ['', f'operator backends on {device}']
        lines += [
            f'  {name:10}{"runs" if reason is None else reason}'
            for name, reason in backends.items()
        ]
    for finding in found['findings']:
        label = 'ERROR' if finding['level'] == TROUBLE else 'note'
        lines += [
            '',
            f'{label} {finding["check"]}: {finding["text"]}',
            f'  -> {finding["advice"]}',
        ]
    lines += ['', 'no trouble found' if found['ok'] else 'there is trouble']
    return '\n'.join(lines)


def _has_room_for(wanted: str) -> int:
    """Before an installation: nothing but metadata is looked at."""
    others = [
        name
        for rows in providers(installed()).values()
        for row, names in rows.items()
        if row != wanted
        for name in names
    ]
    if others:
        print(
            f'the packages of {wanted} would overwrite the files of '
            f'{", ".join(others)}, which are installed here; use another '
            'environment',
            file=sys.stderr,
        )
    return 1 if others else 0


if __name__ == '__main__':
    sys.exit(main())
