"""Images a second of whole backbones, PeLK against its peers.

Peers: ConvNeXt with PeLK's own widths and depths, ConvNeXt and RepLKNet of
mmpretrain. All see the same images in channels-last; PeLK is merged for
inference, as RepLKNet is. The last lines hold the results against targets.

    python tools/benchmarks/throughput.py
    python tools/benchmarks/throughput.py --networks pelk_t same_width_t \\
        --sizes 224 --training --batch 4

The networks of one size are measured in turns, each behind a call that is not
timed, so compare within one run.
Runs may be collected in one file, which keeps those that it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import (
    add_device_arguments,
    environment,
    interleave,
    peak_memory,
    read_json,
    set_device,
    write_json,
)
from torch import nn

from pelk_mm.models import PeLK

ARCHS = {
    't': 'tiny',
    's': 'small',
    'b': 'base',
    '101_t': 'tiny-101',
    '101_b': 'base-101',
}


def pelk(arch: str, backend: str | None = None) -> Callable[[], nn.Module]:
    return lambda: PeLK(arch, backend=backend)


def same_width(arch: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from mmpretrain.models import ConvNeXt

        model = PeLK(arch)
        return ConvNeXt(
            dict(depths=list(model.depths), channels=list(model.channels))
        )

    return build


def convnext(arch: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from mmpretrain.models import ConvNeXt

        return ConvNeXt(arch)

    return build


def replknet() -> nn.Module:
    from mmpretrain.models import RepLKNet

    return RepLKNet('31B')


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f'pelk_{key}': pelk(arch) for key, arch in ARCHS.items()},
    **{
        f'pelk_{key}_dense': pelk(arch, 'dense') for key, arch in ARCHS.items()
    },
    **{f'same_width_{key}': same_width(ARCHS[key]) for key in ('t', 's', 'b')},
    'convnext_t': convnext('tiny'),
    'replknet_31b': replknet,
}
DEFAULT = (
    'pelk_t',
    'pelk_101_t',
    'pelk_s',
    'pelk_b',
    'same_width_t',
    'convnext_t',
    'replknet_31b',
)

#: (what, above, below, size, batch, training, limit, whether at least).
TARGETS = (
    (
        'PeLK-T over ConvNeXt of its widths, time',
        'pelk_t',
        'same_width_t',
        224,
        1,
        False,
        1.12,
        False,
    ),
    (
        'PeLK-T over ConvNeXt of its widths, time of a training step',
        'pelk_t',
        'same_width_t',
        224,
        4,
        True,
        1.25,
        False,
    ),
    (
        'PeLK-101-T over PeLK-T, time',
        'pelk_101_t',
        'pelk_t',
        224,
        1,
        False,
        1.10,
        False,
    ),
    (
        'PeLK-T, training step, times faster than dense',
        'pelk_t_dense',
        'pelk_t',
        224,
        4,
        True,
        2.5,
        True,
    ),
    (
        'PeLK-B-101, times faster than dense',
        'pelk_101_b_dense',
        'pelk_101_b',
        384,
        1,
        False,
        1.25,
        True,
    ),
)


def setting(size: int, batch: int, training: bool) -> str:
    """The key of a run in the results."""
    what = 'training step' if training else 'inference'
    return f'{size} x {size}, batch {batch}, {what}'


def prepare(name: str, training: bool, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().to(device, memory_format=torch.channels_last)
    model.train(training)
    if not training and hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
    return model


def step(
    model: nn.Module, images: torch.Tensor, training: bool, amp: bool
) -> Callable[[], object]:
    """One forward pass, or one with its backward pass."""
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=amp)

    def infer() -> object:
        with torch.inference_mode(), autocast:
            return model(images)

    def train() -> object:
        model.zero_grad()
        with autocast:
            outputs = model(images)
        outputs[-1].float().sum().backward()

    return train if training else infer


def check(name: str, size: int) -> None:
    """PeLK must give the same with its own kernels as with dense ones."""
    torch.manual_seed(0)
    model = PeLK(
        ARCHS[name.removeprefix('pelk_')], layer_scale_init_value=1.0
    ).eval()
    images = torch.randn(1, 3, size, size)
    outputs = []
    with torch.inference_mode():
        for backend in (None, 'dense'):
            for module in model.modules():
                if hasattr(module, 'backend'):
                    module.backend = backend
            outputs.append(model(images)[-1])
    error = (outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()
    if not error < 1e-4:
        raise SystemExit(f'{name} at {size}: off by {error:.2e}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--networks', nargs='+', choices=NETWORKS, default=DEFAULT
    )
    parser.add_argument(
        '--sizes', nargs='+', type=int, default=(224, 384, 512)
    )
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--training', action='store_true')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument(
        '--amp', action='store_true', help='autocast to bfloat16'
    )
    add_device_arguments(parser)
    parser.add_argument(
        '--budget',
        type=float,
        default=30.0,
        metavar='S',
        help='seconds a network and size',
    )
    parser.add_argument(
        '--json', help='write everything to this file, or add to it'
    )
    args = parser.parse_args()
    set_device(parser, args)
    where = {**environment(args.clock), 'amp': args.amp}
    print('\n'.join(f'{key}: {value}' for key, value in where.items()))
    for name in args.networks:
        if name.removeprefix('pelk_') in ARCHS:
            check(name, 64)
    models = {
        name: prepare(name, args.training, args.device)
        for name in args.networks
    }
    runs = read_json(args.json).get('runs', {})
    for size in args.sizes:
        images = torch.randn(args.batch, 3, size, size).to(
            args.device, memory_format=torch.channels_last
        )
        steps = {
            name: step(model, images, args.training, args.amp)
            for name, model in models.items()
        }
        times = interleave(
            steps,
            args.rounds,
            args.clock,
            slice_s=0.0,
            budget_s=args.budget,
            settle=True,
        )
        key = setting(size, args.batch, args.training)
        print(f'\n{key}')
        for name, entry in times.items():
            entry['images_per_s'] = 1e3 * args.batch / entry['median_ms']
            entry['peak_memory'] = memory = peak_memory(
                steps[name], args.device
            )
            print(
                f'  {name:18}{entry["images_per_s"]:9.2f} images/s'
                f'{entry["median_ms"]:10.1f} ms'
                + ('' if memory is None else f'{memory / 2**20:10.1f} MiB')
            )
        runs[key] = {'environment': where, 'networks': times}
        if args.json:
            write_json(args.json, {'runs': runs, 'targets': targets(runs)})
    print()
    for row in targets(runs):
        print(
            f'{row["verdict"]:12} {row["target"]}, {row["setting"]}: '
            f'{row["value"]:.3g} '
            f'({"at least" if row["at_least"] else "at most"} '
            f'{row["limit"]:g})'
        )


def targets(runs: dict[str, dict]) -> list[dict]:
    """How the runs do, as far as they measured what a target is about."""
    rows = []
    for what, above, below, size, batch, training, limit, at_least in TARGETS:
        key = setting(size, batch, training)
        times = runs.get(key, {}).get('networks', {})
        if not {above, below} <= times.keys():
            continue
        ratio = times[above]['median_ms'] / times[below]['median_ms']
        met = ratio >= limit if at_least else ratio <= limit
        rows.append(
            {
                'target': what,
                'setting': key,
                'value': ratio,
                'limit': limit,
                'at_least': at_least,
                'verdict': 'pass' if met else 'falls short',
            }
        )
    return rows


if __name__ == '__main__':
    main()
