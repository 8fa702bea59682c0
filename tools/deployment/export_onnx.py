"""Export a model as ONNX, of standard operators only.

Classifiers give logits, segmentors logits of whole images at their size,
detectors the maps behind backbone and neck. The input is normalised; how is
written into the file. The file is run in onnxruntime before it gets its name.
"""

import argparse

from rich.console import Console
from rich.table import Table

from pelk_mm.deployment.arguments import ExportParser
from pelk_mm.deployment.networks import describe, load_network
from pelk_mm.deployment.onnx_export import OPSET, export_onnx
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import load_config
from pelk_mm.utils.errors import need
from pelk_mm.utils.output import Steps, quiet

KERNELS = {
    'dense': 'each large kernel as one convolution (default)',
    'compact': 'large kernels as sums of boxes, by small convolutions: the '
    'same outputs, faster in onnxruntime, see docs/deployment.md',
}


def parse_args() -> argparse.Namespace:
    parser = ExportParser(__doc__, '.onnx', 'any such size')
    kernels = parser.add_mutually_exclusive_group()
    for option, text in KERNELS.items():
        name = dict(dest='kernels', const=option, default='dense')
        kernels.add_argument(
            f'--{option}', action='store_const', help=text, **name
        )
    text = 'half precision inside; input and outputs stay float32'
    parser.add_argument('--fp16', action='store_true', help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError):
        # Before the long part.
        need('onnx', 'onnxscript', 'onnxruntime')
        with quiet(), Steps() as steps:
            steps.next(f'loading {args.checkpoint}')
            config = load_config(args.config)
            network = load_network(config, args.checkpoint)
            options = dict(dynamic=args.dynamic, metadata=describe(config))
            options.update(
                kernels=args.kernels, half=args.fp16, each=steps.next
            )
            exported = export_onnx(network, args.out, args.shape, **options)
    operators = [f'{num} {name}' for name, num in exported.operators.items()]
    print(f'opset {OPSET}: {", ".join(operators)}')
    table = Table(title='onnxruntime to torch, random images')
    for column in ('output', 'largest difference', 'of its largest value'):
        table.add_column(column)
    for found in exported.differences:
        far = f'{found.absolute:.1e}', f'{found.relative:.1e}'
        table.add_row(found.name, *far)
    Console(highlight=False).print(table)
    print(exported.path)


if __name__ == '__main__':
    main()
