"""Memory of a training step, PeLK against a ConvNeXt of its widths.

What one more image takes at the peak of a step, and what the rest goes to;
with ``with_cp`` as well. The last lines hold the results against targets.

    python tools/benchmarks/memory.py --sizes 224 --amp --json FILE

A step is the forward pass, the backward pass and AdamW's update; gradients are
zeroed in place, as where they lie in the buckets of a distributed run. The
second step of a process of its own is measured, when gradients and the
optimizer's state are there. Counted are the bytes that torch's allocator has
given out, as torch's profiler reports them (on a GPU:
``torch.cuda.max_memory_allocated``): unlike the size of the process the same
number every time, whatever was freed but not given back.

What an image takes is the difference of the peaks with twice the images and
with once, over the images. "Kept" is the part of it that autograd holds
between the two passes; the rest comes and goes within them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable

import measure as bench
import torch
from throughput import NETWORKS
from torch import Tensor, nn

from pelk_mm.utils.files import write_json

CHECKPOINTED = ', with_cp'
DEFAULT = ('pelk_t', 'pelk_t' + CHECKPOINTED, 'same_width_t', 'convnext_t')
CHOICES = (*NETWORKS, *(name + CHECKPOINTED for name in NETWORKS))

#: what: (above, below, limit); every one at every size.
TARGETS = {
    'PeLK-T over ConvNeXt of its widths': ('pelk_t', 'same_width_t', 1.1),
    'PeLK-T with with_cp over without': (DEFAULT[1], 'pelk_t', 0.6),
}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors, what several share once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({x.data_ptr(): x.nbytes() for x in storages}.values())


def kept_for_backward(model: nn.Module, images: Tensor, amp: bool) -> int:
    """Bytes that autograd holds beside the weights and the images."""
    known = (*model.parameters(), *model.buffers(), images)
    there = {x.untyped_storage().data_ptr() for x in known}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in there:
            kept.append(x)
        return x

    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    device = images.device.type
    with saved, torch.autocast(device, torch.bfloat16, enabled=amp):
        model(images)
    return storage_bytes(kept)


def measure(name: str, size: int, batch: int, amp: bool, device: str) -> dict:
    """Bytes of one network and batch, by what they are for."""
    torch.manual_seed(0)
    model = NETWORKS[name.removesuffix(CHECKPOINTED)]()
    model.to(device, memory_format=torch.channels_last).train()
    for module in model.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = name.endswith(CHECKPOINTED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, size, size)
    images = images.to(device, memory_format=torch.channels_last)

    def train() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            outputs = model(images)
        outputs[-1].float().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    train()
    weights = (*model.parameters(), *model.buffers())
    gradients = [x.grad for x in model.parameters()]
    entries = optimizer.state.values()
    state = [x for e in entries for x in e.values() if isinstance(x, Tensor)]
    standing = storage_bytes((*weights, *gradients, *state, images))
    parts = dict(weights=weights, gradients=gradients, optimizer=state)
    result = {part: storage_bytes(held) for part, held in parts.items()}
    result['kept'] = kept_for_backward(model, images, amp)
    result['peak'] = standing + bench.peak_memory(train, device)
    return result


def per_image(once: dict, twice: dict, batch: int) -> dict[str, float]:
    """Bytes that one more image takes, given both batches' measurements."""
    parts = 'kept', 'peak'
    return {part: (twice[part] - once[part]) / batch for part in parts}


def in_a_process(
    name: str, size: int, batch: int, args: argparse.Namespace
) -> dict:
    """:func:`measure` where nothing else has allocated anything."""
    job = json.dumps([name, size, batch, args.amp, args.device])
    command = [sys.executable, __file__, '--measure', job]
    if args.threads:
        command += ['--threads', str(args.threads)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        what = f'{name} at {size} x {size}, batch {batch}'
        raise SystemExit(f'{what}: exit status {done.returncode}')
    return json.loads(done.stdout.splitlines()[-1])


def targets(runs: dict[str, dict]) -> list[dict]:
    """How the runs do, as far as they measured what a target is about."""
    rows = []
    for key, run in runs.items():
        networks = run['networks']
        for what, (above, below, limit) in TARGETS.items():
            if {above, below} <= networks.keys():
                ratio = networks[above]['per image']['peak']
                ratio /= networks[below]['per image']['peak']
                rows.append(bench.judge(f'{what}, {key}', ratio, limit))
    return rows


def parse_args() -> argparse.Namespace:
    parser = bench.make_parser(__doc__)
    add = parser.add_argument
    names = dict(choices=CHOICES, default=DEFAULT, metavar='NAME')
    add('--networks', nargs='+', help=f'of: {"; ".join(CHOICES)}', **names)
    add('--sizes', nargs='+', type=int, default=(224, 512))
    batch_help = 'the smaller one; default: 2, for images above 256 pixels 1'
    add('--batch', type=int, help=batch_help)
    add('--amp', action='store_true', help='autocast to bfloat16')
    add('--measure', help=argparse.SUPPRESS)
    return bench.parse(parser)


def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    where = bench.show_environment(args.clock)
    runs = bench.earlier(args.json, 'runs')
    for size in args.sizes:
        batch = args.batch or (2 if size <= 256 else 1)
        key = f'{size} x {size}' + (', bfloat16' if args.amp else '')
        run = runs.setdefault(key, {'networks': {}})
        run['environment'] = where
        print(f'\n{key}, batches of {batch} and {2 * batch}: MiB')
        heads = ['per image', 'kept', 'weights', 'gradients', 'optimizer']
        heads += [f'peak of {batch}', f'peak of {2 * batch}']
        print(' ' * 24 + ''.join(f'{head:>10}' for head in heads))
        for name in args.networks:
            once = in_a_process(name, size, batch, args)
            twice = in_a_process(name, size, 2 * batch, args)
            image = per_image(once, twice, batch)
            entry = {f'batch {batch}': once, f'batch {2 * batch}': twice}
            run['networks'][name] = {'per image': image, **entry}
            row = [image['peak'], image['kept']]
            row += [once[head] for head in heads[2:5]]
            row += [once['peak'], twice['peak']]
            cells = ''.join(f'{value / 2**20:10.1f}' for value in row)
            print(f'  {name:22}{cells}', flush=True)
            if args.json:
                write_json(args.json, {'runs': runs, 'targets': targets(runs)})
    bench.print_targets(targets(runs))


if __name__ == '__main__':
    main()
