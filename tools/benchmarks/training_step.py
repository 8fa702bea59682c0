"""Time, launches and memory of a config's training step, without its data.

The model, what prepares its batches and the optimizer are the config's. The
pictures are noise, the annotations made up; the step begins with them on the
host, as it does behind a data loader.

    python tools/benchmarks/training_step.py --device cuda --amp \\
        configs/upernet_pelk_t_ade20k.py configs/pelk_t_in1k.py
    python tools/benchmarks/training_step.py configs/demo_pelk_digits.py \\
        --batch 4 --size 64 64

Configs are of mmpretrain, mmseg or mmdet, with PeLK or without. They are
measured one after the other, on a CPU in turns. On a GPU steps follow each
other without a wait, and the GPU's time in its kernels is told apart. A file
keeps the runs that it has.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import gpu
import measure as bench
import numpy as np
import torch
from mmengine.optim import build_optim_wrapper
from throughput import show

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import build_model, library_of, load_config, scope_of
from pelk_mm.utils.files import write_json
from pelk_mm.utils.output import quiet

#: Height and width of the pictures that the recipes train with.
SIZES = {'mmpretrain': (224, 224), 'mmseg': (512, 512), 'mmdet': (800, 1333)}

Size = tuple[int, int]


def classified(batch: int, size: Size) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i % 2) for i in range(batch)]
    return dict(inputs=pictures(batch, size), data_samples=samples)


def segmented(batch: int, size: Size) -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shapes = dict(img_shape=size, ori_shape=size)
    samples = []
    for _ in range(batch):
        labels = PixelData(data=torch.randint(2, (1, *size)))
        samples.append(SegDataSample(gt_sem_seg=labels, metainfo=shapes))
    return dict(inputs=pictures(batch, size), data_samples=samples)


def detected(batch: int, size: Size) -> dict[str, Any]:
    """Eight objects a picture, which fill their boxes."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    shapes = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
    )
    samples = []
    for _ in range(batch):
        corners = torch.rand(8, 2) / 2
        corners = torch.cat((corners, corners + 0.1 + torch.rand(8, 2) / 3), 1)
        boxes = (corners * torch.tensor([width, height] * 2)).int()
        masks = np.zeros((8, *size), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top:bottom, left:right] = 1
        objects = InstanceData(
            bboxes=HorizontalBoxes(boxes.float()),
            labels=torch.zeros(8, dtype=torch.long),
            masks=BitmapMasks(masks, *size),
        )
        sample = DetDataSample(metainfo=shapes, gt_instances=objects)
        samples.append(sample)
    return dict(inputs=pictures(batch, size), data_samples=samples)


def pictures(batch: int, size: Size) -> list[torch.Tensor]:
    shape = 3, *size
    return [torch.randint(256, shape, dtype=torch.uint8) for _ in range(batch)]


BATCHES = {'mmpretrain': classified, 'mmseg': segmented, 'mmdet': detected}


def prepare(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """A config's training step, as mmengine's loops call it, and its batch."""
    config = load_config(path)
    torch.manual_seed(0)
    library = library_of(config)
    size = tuple(args.size or SIZES[library])
    batch = args.batch or config.train_dataloader.batch_size
    options = config.optim_wrapper.copy()
    if args.amp:
        options.update(type='AmpOptimWrapper', dtype='bfloat16')
    with scope_of(config):
        model = build_model(config).to(args.device).train()
        optimizer = build_optim_wrapper(model, options)
    if library == 'mmseg':
        # What pictures are filled up to, which larger ones cannot be.
        model.data_preprocessor.size = size
    data = BATCHES[library](batch, size)
    return dict(
        step=partial(model.train_step, data, optimizer), batch=batch, size=size
    )


def measure(
    configs: dict[str, dict[str, Any]], args: argparse.Namespace
) -> dict[str, dict]:
    """Time the steps of some configs, and what they allocate."""
    steps = {name: config['step'] for name, config in configs.items()}
    if args.clock == 'gpu':
        how = args.rounds, args.budget
        times = {n: gpu.measure_step(step, *how) for n, step in steps.items()}
    else:
        how = args.rounds, args.clock, 0.0, args.budget
        times = bench.interleave(steps, *how, settle=True)
    for name, entry in times.items():
        entry |= {key: configs[name][key] for key in ('batch', 'size')}
        entry['peak_memory'] = bench.peak_memory(steps[name], args.device)
        show(name, entry, entry['batch'])
    return times


def make_parser() -> argparse.ArgumentParser:
    parser = bench.make_parser(__doc__)
    add = parser.add_argument
    add('configs', nargs='+', help='config files')
    add('--batch', type=int, help="pictures; default: the config's")
    size_help = "of the pictures; default: the recipes', such as 800 1333"
    add('--size', nargs=2, type=int, metavar=('H', 'W'), help=size_help)
    add('--amp', action='store_true', help='autocast to bfloat16, on a GPU')
    add('--rounds', type=int, default=10)
    budget_help = 'seconds a config'
    add('--budget', type=float, default=30.0, metavar='S', help=budget_help)
    return parser


def main() -> None:
    parser = make_parser()
    args = bench.parse(parser)
    if args.amp and args.device != 'cuda':
        parser.error('--amp needs --device cuda: mmengine runs it on GPUs')
    where = bench.show_environment(args.clock, amp=args.amp)
    runs = bench.earlier(args.json, 'runs')
    names = [[name] for name in args.configs]
    for group in names if args.clock == 'gpu' else [args.configs]:
        with quiet():
            steps = {name: prepare(name, args) for name in group}
            times = measure(steps, args)
        for name, entry in times.items():
            runs[name + variant(args)] = dict(entry, environment=where)
        if args.json:
            write_json(args.json, {'runs': runs})


def variant(args: argparse.Namespace) -> str:
    """What tells runs of one config apart."""
    size = '' if args.size is None else f', {args.size[0]} x {args.size[1]}'
    batch = '' if args.batch is None else f', batch {args.batch}'
    return size + batch + ', bfloat16' * args.amp


if __name__ == '__main__':
    with command():
        main()
