"""Give a trained PeLK other kernel sizes, for example 51 to 101.

Each new compact kernel is the cell-wise mean of the old kernel, written out
and padded with zeros; positional embeddings are padded with zeros; all else
stays. The result starts a training (load_from, or init_cfg of a backbone).
"""

import argparse
from pathlib import Path

from pelk_mm.apis.conversion import grow_checkpoint
from pelk_mm.models import PeLK
from pelk_mm.models.utils import read_checkpoint
from pelk_mm.models.utils.safe_saving import save_checkpoint
from pelk_mm.utils.command_line import command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='of any task')
    parser.add_argument('out', help='where to write the new checkpoint')
    for prefix, meaning in (
        ('', 'to have'),
        ('from-', 'of the checkpoint, where its shapes do not tell'),
    ):
        archs, text = sorted(PeLK.arch_settings), f'the arch {meaning}'
        parser.add_argument(f'--{prefix}arch', choices=archs, help=text)
        name, sizes = f'--{prefix}kernel-sizes', dict(nargs=4, metavar='K')
        text = f'or the kernel sizes of the stages {meaning}'
        parser.add_argument(name, type=int, **sizes, help=text)
        text = 'and the radius of the unshared centre (default: 2)'
        name = f'--{prefix}center-radius'
        parser.add_argument(name, type=int, metavar='R', help=text)
    args = parser.parse_args()
    if _arch(args, '') is None:
        parser.error('say what to grow to: --arch or --kernel-sizes')
    for prefix in ('', 'from_'):
        if getattr(args, f'{prefix}arch') and (
            getattr(args, f'{prefix}kernel_sizes')
            or getattr(args, f'{prefix}center_radius') is not None
        ):
            option = prefix.replace('_', '-')
            parser.error(
                f'--{option}arch has its own kernel sizes and '
                f'centre: leave out --{option}kernel-sizes and '
                f'--{option}center-radius, or the arch'
            )
    if Path(args.out).resolve() == Path(args.checkpoint).resolve():
        parser.error('the new checkpoint would replace the old one')
    return args


def _arch(args: argparse.Namespace, prefix: str) -> str | dict | None:
    sizes = getattr(args, f'{prefix}kernel_sizes')
    if sizes is None:
        return getattr(args, f'{prefix}arch')
    radius = getattr(args, f'{prefix}center_radius')
    radius = 2 if radius is None else radius
    return dict(kernel_sizes=sizes, center_radius=radius)


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError, about=args.checkpoint):
        archs = _arch(args, ''), _arch(args, 'from_')
        checkpoint = read_checkpoint(args.checkpoint)
        grown, stages = grow_checkpoint(checkpoint, *archs)
        save_checkpoint(grown, args.out)
    print('stage  kernel               relative error')
    for i, stage in enumerate(stages):
        old, new = stage.old, stage.new
        print(
            f'{i:5}  {old.kernel_size:3} ({old.num_cells:2}) -> '
            f'{new.kernel_size:3} ({new.num_cells:2})  {stage.error:.4f}'
        )
    if any(stage.error > 0 for stage in stages):
        print(
            "The kernels changed, so BatchNorm's statistics no longer fit "
            'exactly: fine-tune before use.'
        )
    print(args.out)


if __name__ == '__main__':
    main()
