"""Make of a checkpoint what other people need: its weights.

Writes OUT_DIR/CONFIG-HASH.pth without optimizer state, log and local paths.
"""

import argparse

from pelk_mm.apis.conversion import publish_checkpoint
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config that it was trained with')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out-dir', default='.', help='folder to write to (default: here)'
    )
    parser.add_argument(
        '--weights',
        choices=['average', 'raw', 'both'],
        default='average',
        help='the moving average where there is one (default), the raw '
        'weights, or both',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='also read pickled Python objects, which runs whatever code is '
        'in them: only for files that you trust',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # LaunchErrors are about the config.
    with command(OSError, RuntimeError, about=args.checkpoint):
        path = publish_checkpoint(
            load_config(args.config),
            args.checkpoint,
            args.out_dir,
            weights=args.weights,
            trust=args.trust,
        )
        print(path)


if __name__ == '__main__':
    main()
