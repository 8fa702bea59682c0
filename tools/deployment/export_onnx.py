"""Export a model as ONNX, of standard operators only.

Classifiers give logits, segmentors logits of whole images at their size,
detectors the maps behind backbone and neck. The input is normalised; how is
written into the file. The file is run in onnxruntime before it gets its name.
"""

import argparse

from rich.console import Console
from rich.table import Table

from pelk_mm.analysis.quiet import quiet
from pelk_mm.deployment.networks import describe, load_network
from pelk_mm.deployment.onnx_export import OPSET, export_onnx
from pelk_mm.deployment.packages import need
from pelk_mm.deployment.progress import Steps
from pelk_mm.engine.command_line import command
from pelk_mm.engine.launch import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help='config of the training, or of the merged model')
    parser.add_argument(
        'checkpoint', help='its weights; those of a training are merged')
    parser.add_argument(
        '--shape', nargs=2, type=int, required=True, metavar=('H', 'W'),
        help='image size in pixels, multiples of 32')
    parser.add_argument(
        '--dynamic', action='store_true',
        help='take any number of images of any such size (default: one image '
        'of --shape)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '--dense', dest='form', action='store_const', const='dense',
        default='dense', help='one convolution a large kernel (default)')
    form.add_argument(
        '--compact', dest='form', action='store_const', const='compact',
        help='large kernels as sums of boxes, by small convolutions: exact '
        'too, faster in onnxruntime, see docs/deployment.md')
    parser.add_argument(
        '--fp16', action='store_true',
        help='half precision inside; input and outputs stay float32')
    parser.add_argument('--out', required=True, metavar='FILE')
    args = parser.parse_args()
    if not args.out.endswith('.onnx'):
        parser.error(f'--out must end in .onnx, got {args.out}')
    return args


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError):
        # Before the long part.
        need('onnx', 'onnxscript', 'onnxruntime')
        with quiet(), Steps() as steps:
            steps.next(f'loading {args.checkpoint}')
            config = load_config(args.config)
            network = load_network(config, args.checkpoint)
            exported = export_onnx(
                network,
                args.out,
                args.shape,
                form=args.form,
                dynamic=args.dynamic,
                half=args.fp16,
                metadata=describe(config),
                each=steps.next)
    operators = ', '.join(f'{count} {name}'
                          for name, count in exported.operators.items())
    print(f'opset {OPSET}: {operators}')
    table = Table('output', 'largest difference', 'of its largest value',
                  title='onnxruntime to torch, random images')
    for found in exported.differences:
        table.add_row(found.name, f'{found.absolute:.1e}',
                      f'{found.relative:.1e}')
    Console(highlight=False).print(table)
    print(exported.path)


if __name__ == '__main__':
    main()
