"""Merge a training checkpoint for inference, and write its config.

BatchNorms, small kernels and positional embeddings are folded into the large
kernels. Writes OUT_DIR/CONFIG_deploy.pth and OUT_DIR/CONFIG_deploy.py, which
the libraries' tools and inferencers, and those of this project, take as they
take any other. They cannot be trained further.
"""

import argparse

from pelk_mm.deployment.merging import reparameterize
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import load_config
from pelk_mm.utils.output import Steps, quiet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config that it was trained with')
    parser.add_argument('checkpoint', help='checkpoint of that training')
    parser.add_argument('out_dir', help='folder to write to')
    shape = dict(nargs=2, type=int, metavar=('H', 'W'), default=(224, 224))
    text = 'pixels of the random image to compare on (default: 224 224)'
    parser.add_argument('--shape', **shape, help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError), quiet(), Steps() as steps:
        steps.next(f'merging {args.checkpoint}')
        merged = reparameterize(
            load_config(args.config), args.checkpoint, args.out_dir, args.shape
        )
    worst = max(merged.differences, key=lambda found: found.relative)
    before, after = merged.parameters
    counts = f'{before / 1e6:.2f} M before, {after / 1e6:.2f} M merged'
    print(f'parameters: {counts}')
    detail = f'{worst.name}, {worst.absolute:.1e} of {worst.scale:.1e}'
    share = f'{worst.relative:.1e} of the largest value'
    print(f'largest difference: {share} ({detail})')
    print(merged.config)
    print(merged.checkpoint)


if __name__ == '__main__':
    main()
