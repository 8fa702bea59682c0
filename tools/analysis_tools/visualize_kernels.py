"""Draw a sharing grid, or the large kernels that a PeLK learned."""

import argparse

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.analysis.backbones import build_backbone
from pelk_mm.analysis.figures import save_figure
from pelk_mm.analysis.kernels import collect_kernels, draw_grid, draw_kernels
from pelk_mm.ops import SharingGrid
from pelk_mm.utils.command_line import add_config_options, command
from pelk_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage='%(prog)s CONFIG CHECKPOINT [options]\n'
        '       %(prog)s --grid K [--center-radius R] [--out FILE]\n'
        '       %(prog)s --sizes S [S ...] [--out FILE]',
    )
    add = parser.add_argument
    add('config', nargs='?', help="a PeLK model's config")
    add('checkpoint', nargs='?', help='its weights, as they were trained')
    file = 'PNG file (default: %(default)s)'
    add('--out', default='kernels.png', help=file)
    text = 'draw the cells of a K x K kernel; needs no config'
    add('--grid', type=int, metavar='K', help=text)
    text = 'radius of the unshared centre, with --grid (default: 2)'
    add('--center-radius', type=int, metavar='R', help=text)
    text = 'draw a kernel with these cells, such as 2 1 2'
    add('--sizes', type=int, nargs='+', metavar='S', help=text)
    text = 'blocks of each stage, evenly spaced (default: %(default)s)'
    add('--per-stage', type=int, default=1, metavar='N', help=text)
    text = 'kernels of each block, evenly spaced (default: %(default)s)'
    add('--channels', type=int, default=6, metavar='N', help=text)
    text = 'override fields; for merged weights model.backbone.deploy=True'
    add_config_options(parser, text=text)
    args = parser.parse_args()
    ways = (args.grid, args.sizes, args.config)
    if sum(way is not None for way in ways) != 1:
        parser.error('give CONFIG and CHECKPOINT, or --grid, or --sizes')
    if args.config is not None and args.checkpoint is None:
        parser.error('CONFIG needs a CHECKPOINT: its kernels are drawn')
    if args.center_radius is not None and args.grid is None:
        parser.error('--center-radius goes with --grid')
    return args


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, TypeError, ValueError):
        if args.sizes is not None:
            figure = draw_grid(SharingGrid.from_sizes(args.sizes))
        elif args.grid is not None:
            radius = 2 if args.center_radius is None else args.center_radius
            figure = draw_grid(SharingGrid(args.grid, radius))
        else:
            config = load_config(args.config, args.cfg_options)
            backbone = build_backbone(config, args.checkpoint)
            blocks = collect_kernels(backbone, args.per_stage)
            figure = draw_kernels(blocks, args.channels)
        print(save_figure(figure, args.out))


if __name__ == '__main__':
    main()
