"""Train a small PeLK on digit scenes in minutes, on a CPU too."""

import argparse
import sys
from pathlib import Path

from pelk_mm.demo import TASKS, run_demo
from pelk_mm.utils.command_line import ConfigOptions, command

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('task', choices=list(TASKS))
    parser.add_argument(
        '--data-root',
        default='data/digit_scenes',
        help='folder of the digit scenes, which are made if need be',
    )
    parser.add_argument(
        '--work-dir', help='folder of logs, checkpoints and the picture'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        dest='options',
        help='override fields of the config',
    )
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
