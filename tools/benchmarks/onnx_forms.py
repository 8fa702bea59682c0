"""PeLK's large kernels in onnxruntime: dense against compact, on the CPU.

Every stage's partial convolution, merged, at the map sizes that images of
``--sizes`` give, in four forms: dense and compact as export_onnx.py writes
them, dense without filling up the channels to a block, and torch with this
project's operator. With ``--whole`` also the backbone as a whole. Correctness
is checked first.

    python tools/benchmarks/onnx_forms.py
    python tools/benchmarks/onnx_forms.py --archs tiny --sizes 224 --whole
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from measure import CLOCKS, environment, interleave, write_json
from torch import nn

from pelk_mm.deployment.onnx_export import OPSET
from pelk_mm.deployment.runners import OnnxRunner
from pelk_mm.deployment.standard_layers import (
    StandardPeripheralConv2d,
    to_standard_layers,
)
from pelk_mm.models import PeLK
from pelk_mm.models.layers import PartialPeripheralConv2d
from pelk_mm.ops import SharingGrid
from pelk_mm.utils.output import silent


def unfilled(block: PartialPeripheralConv2d) -> nn.Module:
    block = copy.deepcopy(block)
    beyond = block.large.grid.kernel_size + 1
    block.large = StandardPeripheralConv2d(block.large, beyond, beyond)
    return block


def export(module: nn.Module, channels: int, path: Path) -> OnnxRunner:
    sizes = {
        0: torch.export.Dim('batch'),
        2: 32 * torch.export.Dim('rows'),
        3: 32 * torch.export.Dim('columns'),
    }
    if channels != 3:
        # Not an image but a map.
        sizes = {
            0: sizes[0],
            2: torch.export.Dim('rows'),
            3: torch.export.Dim('columns'),
        }
    with silent('torch.onnx', 'onnxscript'):
        program = torch.onnx.export(
            module,
            (torch.rand(2, channels, 96, 64),),
            dynamo=True,
            input_names=['x'],
            dynamic_shapes=(sizes,),
            verbose=False,
            opset_version=OPSET,
        )
    program.save(str(path))
    return OnnxRunner(path)


def time_forms(
    runners: Mapping[str, OnnxRunner],
    module: nn.Module,
    x: torch.Tensor,
    args: argparse.Namespace,
) -> dict:
    """Median times, after a check that all compute the same."""
    laid_out = x.contiguous(memory_format=torch.channels_last)

    def torch_form() -> torch.Tensor:
        with torch.inference_mode():
            y = module(laid_out)
            return y[0] if isinstance(y, tuple) else y

    expected = torch_form()
    calls = {'torch': torch_form}
    for name, runner in runners.items():
        (y,) = runner(x).values()
        error = (y - expected).abs().max() / expected.abs().max()
        if not error < 1e-4:
            raise SystemExit(f'{name}: off by {error:.2e}')
        calls[name] = lambda runner=runner: runner(x)
    return interleave(calls, args.rounds, args.clock, budget_s=args.budget)


def show(title: str, times: Mapping[str, Mapping[str, float]]) -> None:
    dense = times['dense']['median_ms']
    print(
        f'{title:34}{dense:10.2f} ms dense;  dense over '
        + ', '.join(
            f'{name}: {dense / entry["median_ms"]:.2f}'
            for name, entry in times.items()
            if name != 'dense'
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--archs', nargs='+', default=('tiny', 'tiny-101'))
    parser.add_argument('--sizes', nargs='+', type=int, default=(224, 512))
    parser.add_argument('--whole', action='store_true')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--clock', choices=CLOCKS, default='wall')
    parser.add_argument('--threads', type=int, help='default: all cores')
    parser.add_argument(
        '--budget',
        type=float,
        default=2.0,
        metavar='S',
        help='seconds a form and shape',
    )
    parser.add_argument('--json', help='write everything to this file')
    args = parser.parse_args()
    if args.clock == 'cpu' and args.threads != 1:
        parser.error('--clock cpu needs --threads 1')
    if args.threads:
        torch.set_num_threads(args.threads)
    where = dict(environment(args.clock), onnxruntime=onnxruntime.__version__)
    print('\n'.join(f'{key}: {value}' for key, value in where.items()))
    results = []
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, 'layer.onnx')
        for arch in args.archs:
            settings = PeLK.arch_settings[arch]
            for stage, (channels, size) in enumerate(
                zip(
                    settings['channels'], settings['kernel_sizes'], strict=True
                )
            ):
                block = PartialPeripheralConv2d(
                    channels,
                    SharingGrid(size, settings['center_radius']),
                    deploy=True,
                ).eval()
                runners = {
                    name: export(plain, channels, path)
                    for name, plain in (
                        ('dense', to_standard_layers(block, 'dense')),
                        ('compact', to_standard_layers(block, 'compact')),
                        ('dense, unfilled', unfilled(block)),
                    )
                }
                for image in args.sizes:
                    extent = image >> (2 + stage)
                    times = time_forms(
                        runners,
                        block,
                        torch.randn(1, channels, extent, extent),
                        args,
                    )
                    show(
                        f'{arch} stage {stage + 1} K {size} '
                        f'{extent} x {extent}',
                        times,
                    )
                    results.append(
                        dict(
                            arch=arch,
                            stage=stage + 1,
                            kernel_size=size,
                            extent=extent,
                            image=image,
                            times=times,
                        )
                    )
            if args.whole:
                model = PeLK(arch, layer_scale_init_value=1.0).eval()
                model.init_weights()
                model.switch_to_deploy()
                runners = {
                    form: export(to_standard_layers(model, form), 3, path)
                    for form in ('dense', 'compact')
                }
                for image in args.sizes:
                    times = time_forms(
                        runners, model, torch.randn(1, 3, image, image), args
                    )
                    show(f'{arch} whole, {image} x {image}', times)
                    results.append(dict(arch=arch, image=image, times=times))
    if args.json:
        write_json(args.json, dict(environment=where, results=results))


if __name__ == '__main__':
    main()
