"""Predict pictures with a model of any task, and draw what it found."""

import argparse
import sys
from pathlib import Path

import share_cores  # noqa: F401  # isort: skip (before torch)

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

import pelk_mm  # noqa: F401, registers PeLK also for a config that does not
from pelk_mm.apis.inference import (
    Predictor,
    build_predictor,
    list_images,
    predict_files,
)
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import load_config
from pelk_mm.utils.output import quiet

#: How results are drawn.
OPTIONS = 'opacity', 'score_thr'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Exit status: 0 if all pictures were predicted, 1 if not.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', help='a picture, or a folder of them')
    text = 'folder for the drawn pictures'
    parser.add_argument('--out', required=True, help=text)
    text = 'such as cpu or cuda:1 (default: a GPU if any)'
    parser.add_argument('--device', help=text)
    parser.add_argument('--batch-size', type=int, default=1, help='default: 1')
    text = 'of the colours over the picture, 0 to 1 (default: 0.5)'
    parser.add_argument('--opacity', type=float, help=text)
    text = 'least score of a detection, 0 to 1 (default: 0.3)'
    parser.add_argument('--score-thr', type=float, metavar='SCORE', help=text)
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got {args.batch_size}')
    for name in OPTIONS:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            option = name.replace('_', '-')
            parser.error(f'--{option} must be from 0 to 1, got {value:g}')
    return args


def main() -> int:
    args = parse_args()
    with command(), quiet():
        config = load_config(args.config)
        images = list_images(args.image)
        options = {name: getattr(args, name) for name in OPTIONS}
        given = config, args.checkpoint, args.device
        predictor = build_predictor(*given, **options)
        return run(args, predictor, images)


def run(
    args: argparse.Namespace, predictor: Predictor, images: list[Path]
) -> int:
    # Wide enough for paths where the output is no terminal.
    console = Console(width=None if sys.stdout.isatty() else 120)
    # Named as in the folder, as what is drawn is: the end of a path is what
    # tells pictures apart, and must not be cut off.
    given = Path(args.image)
    folder = given if given.is_dir() else given.parent
    table = Table(Column('picture', overflow='fold'), *predictor.columns)
    failed = 0
    results = predict_files(predictor, images, args.out, args.batch_size)
    shown = dict(total=len(images), console=Console(stderr=True))
    for result in track(results, 'Pictures', **shown):
        if result.error is not None:
            failed += 1
            print(f'skipped: {result.error}', file=sys.stderr)
            continue
        name = escape(str(Path(result.image).relative_to(folder)))
        nothing = ('nothing found', *[''] * (len(predictor.columns) - 1))
        for row in result.rows or [nothing]:
            table.add_row(name, *map(escape, row))
            name = ''
        table.add_section()
    console.print(table)
    drawn = len(images) - failed
    print(f'{drawn} of {len(images)} pictures drawn to {args.out}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
