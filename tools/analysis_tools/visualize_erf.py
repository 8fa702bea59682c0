"""Draw the effective receptive field of any backbone, or of several.

Files of OUT: NAME.npy, the mean gradient of every pixel; NAME.json, the area
ratios; erf.png, all networks side by side. A run that was interrupted goes on
where it was; a network that is done is not computed again. Images that
cannot be read are left out; the exit status is then 1.
"""

import argparse
import hashlib
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from rich.progress import Progress, TaskID

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.analysis.erf import (
    Field,
    FieldSum,
    build_for_erf,
    compute_field,
    describe,
    draw_fields,
    pick_images,
    save_field,
)
from pelk_mm.analysis.figures import save_figure
from pelk_mm.datasets.images import sort_out
from pelk_mm.datasets.preprocessor import Preprocessor
from pelk_mm.utils.command_line import add_config_options, command
from pelk_mm.utils.config import load_config
from pelk_mm.utils.output import quiet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    text = (
        'config of any of the three libraries, also of an installed '
        'package: mmpretrain::convnext/convnext-tiny_32xb128_in1k.py; '
        'NAME=CONFIG to name it'
    )
    add('config', help=text)
    add('checkpoint', nargs='?', help='trained weights (default: random)')
    text = 'another network; may be given several times'
    networks = dict(metavar=('CONFIG', 'CHECKPOINT'), help=text)
    add('--also', nargs='+', action='append', default=[], **networks)
    add('--images', required=True, metavar='DIR', help='folder of images')
    default = '(default: %(default)s)'
    add('--num', type=int, default=50, help=f'images {default}')
    text = f'height and width that they are resized to {default}'
    add('--size', type=int, default=1024, help=text)
    text = f'where to write {default}'
    add('--out', default='work_dirs/erf', metavar='DIR', help=text)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--device', default=device, help=default)
    add_config_options(parser, text='override fields of every config')
    args = parser.parse_args()
    if args.size < 32 or args.size % 32:
        parser.error(f'--size must be a multiple of 32, got {args.size}')
    for given in args.also:
        if len(given) > 2:
            got = ' '.join(given)
            parser.error(f'--also takes a config and a checkpoint, got {got}')
    others = [[*given, None][:2] for given in args.also]
    args.networks = [[args.config, args.checkpoint], *others]
    return args


def split_name(text: str, taken: set[str]) -> tuple[str, str]:
    """NAME=CONFIG, or a name made of the config's, that is not taken."""
    name, separator, config = text.rpartition('=')
    if not separator or Path(text).is_file():
        name, config = Path(text).stem, text
    name = ''.join(c if c.isalnum() or c in '-_.+ ' else '_' for c in name)
    unique = name
    for count in itertools.count(2):
        if unique not in taken:
            break
        unique = f'{name}-{count}'
    taken.add(unique)
    return unique, config


def fingerprint(
    config: Config,
    checkpoint: str | None,
    images: list[Path],
    read: Preprocessor,
) -> str:
    """Of all that a field depends on."""
    parts = [repr(config.model.backbone), repr(read)]
    parts += [f'{path.name} {path.stat().st_size}' for path in images]
    digest = hashlib.sha256(''.join(parts).encode())
    if checkpoint and Path(checkpoint).is_file():
        digest.update(Path(checkpoint).read_bytes())
    else:
        digest.update(str(checkpoint).encode())
    return digest.hexdigest()


def finished(folder: Path, name: str, key: str) -> Field | None:
    """The field that an earlier run wrote, if it is of the same inputs."""
    try:
        summary = json.loads(Path(folder, f'{name}.json').read_text())
        if summary['fingerprint'] != key:
            return None
        matrix = np.load(Path(folder, f'{name}.npy')).astype(np.float64)
        return Field(name, matrix, summary['images'], summary['trained'])
    except (OSError, ValueError, KeyError):
        return None


def show(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def run(args: argparse.Namespace, progress: Progress) -> bool:
    """Whether all of the images could be read."""
    images, broken = sort_out(pick_images(args.images, args.num))
    for reason in broken:
        print(f'skipped: {reason}', file=sys.stderr)
    if not images:
        raise ValueError(f'no image of {args.images} can be read')
    if len(images) < args.num:
        progress.print(f'only {len(images)} images in {args.images}')
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    # All of the input is read before the first long computation.
    taken: set[str] = set()
    networks = []
    for text, checkpoint in args.networks:
        name, path = split_name(text, taken)
        config = load_config(path, args.cfg_options)
        build_for_erf(config, checkpoint)
        networks.append((name, config, checkpoint))
    fields = []
    for name, config, checkpoint in networks:
        read = Preprocessor.from_config(config, args.size)
        key = fingerprint(config, checkpoint, images, read)
        task = progress.add_task(name, total=len(images))
        field = finished(folder, name, key)
        if field is None:
            running = FieldSum(folder / f'{name}.partial.npz', key)
            backbone = build_for_erf(config, checkpoint).to(args.device)
            trained = checkpoint is not None
            given = name, backbone, images, read, running, trained
            each = partial(show, progress, task)
            field = compute_field(*given, each)
            more = dict(checkpoint=checkpoint, fingerprint=key)
            save_field(field, folder, dict(size=args.size, **more))
            running.path.unlink(missing_ok=True)
        show(progress, task, len(images))
        fields.append(field)
    path = save_figure(draw_fields(fields), folder / 'erf.png')
    for field in fields:
        progress.print(f'{field.name}: {", ".join(describe(field.picture))}')
    progress.print(path)
    return not broken


def main() -> int:
    args = parse_args()
    with (
        command(OSError, RuntimeError, ValueError),
        quiet(),
        Progress() as progress,
    ):
        return 0 if run(args, progress) else 1


if __name__ == '__main__':
    sys.exit(main())
