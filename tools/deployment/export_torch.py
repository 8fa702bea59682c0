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
    text = 'compile with AOTInductor for CPUs like this one (default: do not)'
    parser.add_argument('--compile', action='store_true', help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError), quiet(), Steps() as steps:
        steps.next(f'loading {args.checkpoint}')
        config = load_config(args.config)
        network = load_network(config, args.checkpoint)
        options = dict(dynamic=args.dynamic, metadata=describe(config))
        options['kind'] = 'compiled' if args.compile else 'exported'
        options['each'] = steps.next
        exported = export_torch(network, args.out, args.shape, **options)
    worst = max(exported.differences, key=lambda found: found.relative)
    far = f'{worst.relative:.1e} of the largest value'
    print(f'largest difference: {far} ({worst.name})')
    print(exported.path)


if __name__ == '__main__':
    main()
