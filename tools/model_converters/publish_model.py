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
    text = 'folder to write to (default: here)'
    parser.add_argument('--out-dir', default='.', help=text)
    choices = dict(choices=['average', 'raw', 'both'], default='average')
    text = 'the moving average if any (default), the raw weights, or both'
    parser.add_argument('--weights', **choices, help=text)
    text = 'also read pickled objects, which runs any code that is in them: '
    text += 'only for files that you trust'
    parser.add_argument('--trust', action='store_true', help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # LaunchErrors are about the config.
    with command(OSError, RuntimeError, about=args.checkpoint):
        config = load_config(args.config)
        options = dict(weights=args.weights, trust=args.trust)
        where = args.checkpoint, args.out_dir
        print(publish_checkpoint(config, *where, **options))


if __name__ == '__main__':
    main()
