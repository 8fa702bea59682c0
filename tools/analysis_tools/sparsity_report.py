"""Print and plot the density of every layer of a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.analysis.density import (
    LayerDensity,
    checkpoint_densities,
    merged_densities,
    plot_densities,
)
from pelk_mm.engine.sparsity.state import STATE_KEY
from pelk_mm.models.utils import read_checkpoint, weights_of
from pelk_mm.utils.command_line import command
from pelk_mm.utils.config import build_model, load_config
from pelk_mm.utils.files import write_json

# A table that is cut to 80 columns cannot be read.
CONSOLE = Console(width=max(Console().width, 120))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('checkpoint', help='checkpoint file')
    text = 'the plot (default: the checkpoint with the ending .density.png)'
    add('--plot', metavar='FILE', help=text)
    add('--no-plot', action='store_true', help='leave the plot out')
    text = "the model's config: also report kernels that merging makes denser"
    add('--config', help=text)
    add('--json', metavar='FILE', help='write the counts here')
    return parser.parse_args()


def merge(config_path: str, checkpoint: dict) -> dict[str, LayerDensity]:
    model = build_model(load_config(config_path))
    model.load_state_dict(weights_of(checkpoint, 'the checkpoint'))
    return merged_densities(model)


def origin_of(state: dict[str, Any] | None) -> str:
    if not state:
        return 'no masks, zeros counted'
    if 'step' not in state:
        return 'with masks'
    text = 'masks by {init}, step {step}, prune rate {prune_rate:.4f}'
    return text.format(**state)


def print_layers(
    layers: list[LayerDensity], merged: dict[str, LayerDensity], title: str
) -> None:
    table = Table(title=title)
    table.add_column('weight', overflow='fold')
    for name in ('shape', 'weights', 'non-zero', 'density'):
        table.add_column(name, justify='right')
    table.add_column('mask')
    if merged:
        table.add_column('merged', justify='right')
    for layer in layers:
        shape = ' x '.join(map(str, layer.shape))
        mask = 'yes' if layer.masked else ''
        counts = f'{layer.weights}', f'{layer.nonzero}', f'{layer.density:.4f}'
        row = [layer.name, shape, *counts, mask]
        if layer.name in merged:
            row.append(f'{merged[layer.name].density:.4f}')
        table.add_row(*row)
    table.add_section()
    weights = sum(layer.weights for layer in layers)
    nonzero = sum(layer.nonzero for layer in layers)
    table.add_row(
        'all', '', f'{weights}', f'{nonzero}', f'{nonzero / weights:.4f}'
    )
    CONSOLE.print(table)
    most = max(layers, key=lambda layer: layer.density)
    least = min(layers, key=lambda layer: layer.density)
    print(
        f'{weights / 1e6:.2f} M weights of linear layers and convolutions, '
        f'{nonzero / 1e6:.2f} M of them not zero.\n'
        f'Most dense: {most.name} {most.density:.4f}; least dense: '
        f'{least.name} {least.density:.4f}.\n'
        'Unstructured zeros save nothing at run time.'
    )


def main() -> None:
    args = parse_args()
    path = Path(args.checkpoint)
    with command(OSError, RuntimeError, ValueError, about=args.checkpoint):
        checkpoint = read_checkpoint(args.checkpoint)
        layers = checkpoint_densities(checkpoint)
        merged = merge(args.config, checkpoint) if args.config else {}
        origin = origin_of(checkpoint.get(STATE_KEY))
        print_layers(layers, merged, f'{path.name}: {origin}')
        if args.json:
            rows = dict(layers=layers, merged=merged.values())
            counts = {k: [x.as_dict() for x in v] for k, v in rows.items()}
            write_json(args.json, counts)
        if not args.no_plot:
            plot = args.plot or str(path.with_suffix('.density.png'))
            plot_densities(layers, plot)
            print(f'plot: {plot}')


if __name__ == '__main__':
    main()
