"""Export a merged model as a .pt2 package of torch.

Large kernels stay calls of this project's operator: "import pelk_mm.ops"
before loading the file. Outputs are those of export_onnx.py. The file is
loaded and run before it gets its name.
"""

import argparse

from pelk_mm.deployment.arguments import ExportParser
from pelk_mm.deployment.networks import describe, load_network
from pelk_mm.deployment.torch_export import export_torch
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import load_config
from pelk_mm.utils.output import Steps, quiet


def parse_args() -> argparse.Namespace:
    parser = ExportParser(__doc__, '.pt2', 'any such size from 64 on')
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile with AOTInductor, for CPUs like this one (default: the '
        'graph alone, for torch.export.load)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError), quiet(), Steps() as steps:
        steps.next(f'loading {args.checkpoint}')
        config = load_config(args.config)
        exported = export_torch(
            load_network(config, args.checkpoint),
            args.out,
            args.shape,
            kind='compiled' if args.compile else 'exported',
            dynamic=args.dynamic,
            metadata=describe(config),
            each=steps.next,
        )
    worst = max(exported.differences, key=lambda found: found.relative)
    print(
        f'largest difference: {worst.relative:.1e} of the largest value '
        f'({worst.name})'
    )
    print(exported.path)


if __name__ == '__main__':
    main()
