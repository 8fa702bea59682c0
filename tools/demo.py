"""Train a small PeLK on digit scenes in minutes, on a CPU too."""

import argparse
import sys

import share_cores  # noqa: F401  # isort: skip (before torch)

from pelk_mm.demo import TASKS, run_demo
from pelk_mm.utils.command_line import add_config_options, command
from pelk_mm_names import CONFIGS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('task', choices=list(TASKS))
    data_help = 'folder of the digit scenes, which are made if need be'
    add('--data-root', default='data/digit_scenes', help=data_help)
    add('--work-dir', help='folder of logs, checkpoints and the picture')
    add_config_options(parser, dest='options')
    return parser.parse_args()


def main() -> None:
    options = vars(parse_args())
    task = options.pop('task')
    try:
        with command(OSError, ImportError):
            result = run_demo(task, CONFIGS, **options)
    except KeyboardInterrupt:
        sys.exit('\ninterrupted')
    minutes = f'{result.seconds / 60:.1f} minutes'
    print(f'\n{task}: {minutes} for data, training, evaluation and picture')
    for name, value in result.figures.items():
        print(f'{name}: {value:.3f} over {result.images} validation pictures')
    print(f'picture: {result.picture}')


if __name__ == '__main__':
    main()
