"""Images a second of whole backbones, PeLK against its peers.

Peers: ConvNeXt with PeLK's own widths and depths, ConvNeXt and RepLKNet of
mmpretrain. `grown_101_t` is ConvNeXt-T with its kernels grown to 101 x 101.
All see the same images in channels-last; PeLK is merged for inference, as
RepLKNet is. The last lines hold the results against targets.

    python tools/benchmarks/throughput.py
    python tools/benchmarks/throughput.py --networks pelk_t same_width_t \\
        --sizes 224 --training --batch 4
    python tools/benchmarks/throughput.py --sizes 224 512 --networks \\
        convnext_t grown_51_t grown_101_t convnext_b grown_51_b grown_101_b

The networks of one size are measured in turns, so compare within one run. A
file keeps the runs that it has.

A training step is a forward and a backward pass, with `--adamw` its update
too. On a GPU steps follow each other without a wait, the host's time of one
step and the GPU's time in its kernels are told apart, and each network is
written once it is measured:

    python tools/benchmarks/throughput.py --device cuda --amp --training \\
        --adamw --batch 64 --sizes 224 --rounds 5 --cuda-graph \\
        --networks pelk_t same_width_t convnext_t pelk_101_t
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import gpu
import measure as bench
import torch
from mmengine.registry import MODELS
from torch import nn

from pelk_mm.models import PeLK
from pelk_mm.utils.files import write_json

ARCHS = {'t': 'tiny', 's': 'small', 'b': 'base'}
ARCHS |= {'101_t': 'tiny-101', '101_b': 'base-101'}
GROWN = {'51_t': 'convnext-tiny', '101_t': 'convnext-tiny-101'}
GROWN |= {'51_b': 'convnext-base', '101_b': 'convnext-base-101'}


def network(type: str, **arguments: object) -> Callable[[], nn.Module]:
    return partial(MODELS.build, dict(type=type, **arguments))


def convnext_like(arch: str) -> Callable[[], nn.Module]:
    settings = PeLK.arch_settings[arch]
    sizes = {key: list(settings[key]) for key in ('depths', 'channels')}
    return network('mmpretrain.ConvNeXt', arch=sizes)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f'same_width_{key}': convnext_like(ARCHS[key]) for key in 'tsb'},
    'convnext_t': network('mmpretrain.ConvNeXt', arch='tiny'),
    'convnext_b': network('mmpretrain.ConvNeXt', arch='base'),
    'replknet_31b': network('mmpretrain.RepLKNet', arch='31B'),
}
for key, arch in ARCHS.items():
    NETWORKS[f'pelk_{key}'] = partial(PeLK, arch)
    NETWORKS[f'pelk_{key}_dense'] = partial(PeLK, arch, backend='dense')
NETWORKS |= {
    f'grown_{key}': partial(PeLK, arch) for key, arch in GROWN.items()
}
DEFAULT = 'pelk_t', 'pelk_101_t', 'pelk_s', 'pelk_b'
IN_GRAPH = ', CUDA graph'
DEFAULT += 'same_width_t', 'convnext_t', 'replknet_31b'

#: (what, above, below, size, batch, training, limit, whether at least).
# fmt: off
TARGETS = (
    ('PeLK-T over ConvNeXt of its widths, time',
     'pelk_t', 'same_width_t', 224, 1, False, 1.12, False),
    ('PeLK-T over ConvNeXt of its widths, time of a training step',
     'pelk_t', 'same_width_t', 224, 4, True, 1.25, False),
    ('PeLK-101-T over PeLK-T, time',
     'pelk_101_t', 'pelk_t', 224, 1, False, 1.10, False),
    ('PeLK-T, training step, times faster than dense',
     'pelk_t_dense', 'pelk_t', 224, 4, True, 2.5, True),
    ('PeLK-B-101, times faster than dense',
     'pelk_101_b_dense', 'pelk_101_b', 384, 1, False, 1.25, True),
    *((f'ConvNeXt-{key.upper()} grown to 101 over its 7 x 7, time',
       f'grown_101_{key}', f'convnext_{key}', size, 1, training, 1.3, False)
      for key in 'tb' for training in (False, True) for size in (224, 512)),
    ('PeLK-T over ConvNeXt of its widths, images/s in training',
     'same_width_t', 'pelk_t', 224, 64, True, 0.8, True),
    ('PeLK-101-T over PeLK-T, images/s in training',
     'pelk_t', 'pelk_101_t', 224, 64, True, 0.95, True),
)
# fmt: on


def setting(size: int, batch: int, training: bool) -> str:
    what = 'training step' if training else 'inference'
    return f'{size} x {size}, batch {batch}, {what}'


def variant(args: argparse.Namespace) -> str:
    """What else tells runs of one setting apart."""
    named = {
        'AdamW': args.adamw,
        'bfloat16': args.amp,
        'blocks compiled': args.compile,
    }
    return ''.join(f', {name}' for name, wanted in named.items() if wanted)


def prepare(name: str, args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model.to(args.device, memory_format=torch.channels_last)
    model.train(args.training)
    if not args.training and hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
    for module in model.modules():
        # One block after the other: equal ones are compiled once.
        if args.compile and type(module).__name__.endswith('Block'):
            module.compile()
    return model


def step(
    model: nn.Module,
    images: torch.Tensor,
    args: argparse.Namespace,
    in_graph: bool = False,
) -> Callable[[], object] | None:
    """One forward pass, or one with its backward pass and update.

    The passes as one CUDA graph if so wanted; None if that cannot be.
    """
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.amp)

    def infer() -> object:
        with torch.inference_mode(), autocast:
            return model(images)

    def train() -> object:
        model.zero_grad()
        with autocast:
            outputs = model(images)
        outputs[-1].float().sum().backward()

    once = train if args.training else infer
    if in_graph:
        once = gpu.capture([once])
    if not args.adamw or once is None:
        return once
    options = dict(lr=1e-4, fused=args.device == 'cuda')
    optimizer = torch.optim.AdamW(model.parameters(), **options)

    def update() -> None:
        once()
        optimizer.step()

    return update


def check(arch: str, args: argparse.Namespace) -> None:
    """PeLK must give the same with its own kernels as with dense ones."""
    torch.manual_seed(0)
    model = PeLK(arch, layer_scale_init_value=1.0).to(args.device).eval()
    on_cpu = args.device == 'cpu'
    size = 64 if on_cpu else args.sizes[0]  # kernels that are used later
    images = torch.randn(1, 3, size, size, device=args.device)
    # Both round in every layer; a GPU's other convolutions do so to TF32.
    limit = 0.05 if args.amp else 1e-4 if on_cpu else 1e-2
    outputs = []
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.amp)
    with torch.inference_mode(), autocast:
        for backend in (None, 'dense'):
            for module in model.modules():
                if hasattr(module, 'backend'):
                    module.backend = backend
            outputs.append(model(images)[-1])
    error = (outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()
    if not error < limit:
        raise SystemExit(f'PeLK {arch!r}: off by {error:.2e}')


def targets(runs: dict[str, dict]) -> list[dict]:
    """How the runs do, as far as they measured what a target is about."""
    rows = []
    for what, above, below, size, batch, training, limit, at_least in TARGETS:
        of_setting = setting(size, batch, training)
        for key in (key for key in runs if key.startswith(of_setting)):
            times = runs[key]['networks']
            for how in ('', IN_GRAPH):
                pair = [times.get(name + how) for name in (above, below)]
                if all(pair):
                    ratio = pair[0]['median_ms'] / pair[1]['median_ms']
                    target = f'{what}, {key}{how}'
                    rows.append(bench.judge(target, ratio, limit, at_least))
    return rows


def measure(
    models: dict[str, nn.Module], size: int, args: argparse.Namespace
) -> dict:
    """Time all models on images of one size and print it."""
    images = torch.randn(args.batch, 3, size, size, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)
    if args.clock == 'gpu':
        times = {}
        for name, model in models.items():
            for in_graph in (False, True)[: 1 + args.cuda_graph]:
                entry = measure_on_gpu(model, images, args, in_graph)
                if entry:
                    times[name + IN_GRAPH * in_graph] = entry
    else:
        calls = {n: step(model, images, args) for n, model in models.items()}
        how = args.rounds, args.clock, 0.0, args.budget
        times = bench.interleave(calls, *how, settle=True)
        for name, entry in times.items():
            peak = bench.peak_memory(calls[name], args.device)
            entry['peak_memory'] = peak
    for name, entry in times.items():
        show(name, entry, args.batch)
    return times


def show(name: str, entry: dict, batch: int) -> None:
    """Print one network's times, and add how many images a second that is."""
    entry['images_per_s'] = 1e3 * batch / entry['median_ms']
    speed, ms = entry['images_per_s'], entry['median_ms']
    mib = entry.get('peak_memory', math.nan) / 2**20
    print(f'  {name:26}{speed:9.2f} images/s{ms:10.1f} ms{mib:10.1f} MiB')
    if 'kernels' in entry:
        gpu.show_step(entry)


def measure_on_gpu(
    model: nn.Module,
    images: torch.Tensor,
    args: argparse.Namespace,
    in_graph: bool,
) -> dict | None:
    """A step's time, its host's and its kernels', and what it allocates.

    A graph allocates nothing when it runs: it holds what its capture took.
    """
    call = step(model, images, args, in_graph)
    if call is None:
        return None
    entry = gpu.measure_step(call, args.rounds, args.budget)
    if not in_graph:
        entry['peak_memory'] = bench.peak_memory(call, args.device)
    return entry


def main() -> None:
    parser = bench.make_parser(__doc__)
    add = parser.add_argument
    add('--networks', nargs='+', choices=NETWORKS, default=DEFAULT)
    add('--sizes', nargs='+', type=int, default=(224, 384, 512))
    add('--batch', type=int, default=1)
    add('--training', action='store_true')
    add('--amp', action='store_true', help='autocast to bfloat16')
    add('--adamw', action='store_true', help="with the optimizer's step")
    add('--compile', action='store_true', help='blocks by torch.compile')
    graph_help = 'on a GPU also with the passes as one CUDA graph'
    add('--cuda-graph', action='store_true', help=graph_help)
    add('--rounds', type=int, default=10)
    budget_help = 'seconds a network and size'
    add('--budget', type=float, default=30.0, metavar='S', help=budget_help)
    args = bench.parse(parser)
    if args.adamw and not args.training:
        parser.error('--adamw is a part of a training step: add --training')
    if args.cuda_graph and args.clock != 'gpu':
        parser.error('--cuda-graph needs --device cuda')
    where = bench.show_environment(args.clock, amp=args.amp)
    for name in args.networks:
        arch = ARCHS.get(name.removeprefix('pelk_'))
        arch = arch or GROWN.get(name.removeprefix('grown_'))
        if arch:
            check(arch, args)
    runs = bench.earlier(args.json, 'runs')
    alone = [[name] for name in args.networks]
    for size in args.sizes:
        key = setting(size, args.batch, args.training) + variant(args)
        print(f'\n{key}')
        runs[key] = {'environment': where, 'networks': {}}
        for names in alone if args.clock == 'gpu' else [args.networks]:
            models = {name: prepare(name, args) for name in names}
            runs[key]['networks'] |= measure(models, size, args)
            if args.json:
                write_json(args.json, {'runs': runs, 'targets': targets(runs)})
    bench.print_targets(targets(runs))


if __name__ == '__main__':
    main()
