"""Make a ConvNeXt a PeLK that computes the same, with larger kernels.

Takes checkpoints of mmpretrain, mmsegmentation and mmdetection, the original
repositories, timm, open_clip, torchvision, Hugging Face and DINOv3, as .pth or
.safetensors. The heads of OpenMMLab models are kept; of others, the linear
layer of a classifier. The kernels start as they are, with zeros around them.
To start a backbone alone, an init_cfg takes such files as they are.
"""

import argparse
from pathlib import Path

from pelk_mm.apis.conversion import convert_convnext
from pelk_mm.models.utils import as_arguments, pelk_arguments, read_checkpoint
from pelk_mm.models.utils.safe_saving import save_checkpoint
from pelk_mm.utils.command_line import command
from pelk_mm.utils.text import first_few


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='of a ConvNeXt; a file or a URL')
    parser.add_argument('out', help='where to write the new checkpoint')
    parser.add_argument(
        '--kernel-sizes',
        nargs=4,
        type=int,
        required=True,
        metavar='K',
        help='of the four stages, such as 101 69 67 13 or 51 49 47 13',
    )
    parser.add_argument(
        '--center-radius',
        type=int,
        default=3,
        metavar='R',
        help='of the unshared centre, which takes in the old kernel (default: '
        '3, for 7x7)',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='also read pickled objects, which runs code that is in them',
    )
    args = parser.parse_args()
    if Path(args.out).resolve() == Path(args.checkpoint).resolve():
        parser.error('the new checkpoint would replace the old one')
    return args


def main() -> None:
    args = parse_args()
    kernels = args.kernel_sizes, args.center_radius
    with command(OSError, RuntimeError, ValueError, about=args.checkpoint):
        checkpoint = read_checkpoint(args.checkpoint, args.trust)
        converted, convnext = convert_convnext(checkpoint, *kernels)
        save_checkpoint(converted, args.out)
    backbone = pelk_arguments(convnext, *kernels)
    print(f'read as {convnext}, its names starting with {convnext.prefix!r}')
    print('stage  blocks  channels  kernel')
    rows = zip(
        convnext.depths,
        convnext.channels,
        convnext.kernel_sizes,
        args.kernel_sizes,
        strict=True,
    )
    for i, (depth, channels, old, new) in enumerate(rows):
        print(f'{i:5}  {depth:6}  {channels:8}  {old} -> {new}')
    heads = [n for n in converted['state_dict'] if 'backbone.' not in n]
    print(f'kept besides: {first_few(heads) or "nothing"}')
    print(f"backbone=dict(type='PeLK', {as_arguments(backbone)})")
    print(args.out)


if __name__ == '__main__':
    main()
