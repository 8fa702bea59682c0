"""Print and plot the density of every layer of a checkpoint."""

import argparse
import json
from pathlib import Path

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
from pelk_mm.utils.files import atomic_path

# A table that is cut to 80 columns cannot be read.
CONSOLE = Console(width=max(Console().width, 120))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--plot',
        metavar='FILE',
        help='where to save the plot (default: beside the checkpoint, with '
        'the ending .density.png)',
    )
    parser.add_argument(
        '--no-plot', action='store_true', help='leave the plot out'
    )
    parser.add_argument(
        '--config',
        help='config of the model: also report the kernels that merging '
        '(switch_to_deploy) makes denser',
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts here')
    return parser.parse_args()


def merge(config_path: str, checkpoint: dict) -> dict[str, LayerDensity]:
    model = build_model(load_config(config_path))
    model.load_state_dict(weights_of(checkpoint, 'the checkpoint'))
    return merged_densities(model)


def print_layers(
    layers: list[LayerDensity], merged: dict[str, LayerDensity], title: str
) -> None:
    table = Table(title=title)
    table.add_column('weight', overflow='fold')
    for name in ('shape', 'weights', 'live', 'density'):
        table.add_column(name, justify='right')
    table.add_column('mask')
    if merged:
        table.add_column('merged', justify='right')
    for layer in layers:
        row = [
            layer.name,
            ' x '.join(map(str, layer.shape)),
            f'{layer.weights}',
            f'{layer.live}',
            f'{layer.density:.4f}',
            'yes' if layer.masked else '',
        ]
        if layer.name in merged:
            row.append(f'{merged[layer.name].density:.4f}')
        table.add_row(*row)
    table.add_section()
    weights = sum(layer.weights for layer in layers)
    live = sum(layer.live for layer in layers)
    table.add_row('all', '', f'{weights}', f'{live}', f'{live / weights:.4f}')
    CONSOLE.print(table)
    most = max(layers, key=lambda layer: layer.density)
    least = min(layers, key=lambda layer: layer.density)
    print(
        f'{weights / 1e6:.2f} M weights of linear layers and convolutions, '
        f'{live / 1e6:.2f} M of them live.\n'
        f'Most dense: {most.name} {most.density:.4f}; least dense: '
        f'{least.name} {least.density:.4f}.\n'
        'Unstructured zeros save nothing at run time.'
    )


def main() -> None:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError, about=args.checkpoint):
        checkpoint = read_checkpoint(args.checkpoint)
        layers = checkpoint_densities(checkpoint)
        merged = merge(args.config, checkpoint) if args.config else {}
        state = checkpoint.get(STATE_KEY)
        title = Path(args.checkpoint).name
        if state:
            title += (
                f': masks by {state["init"]}, step {state["step"]}, '
                f'prune rate {state["prune_rate"]:.4f}'
                if 'step' in state
                else ': with masks'
            )
        else:
            title += ': no masks, zeros counted'
        print_layers(layers, merged, title)
        if args.json:
            with atomic_path(args.json) as path:
                path.write_text(
                    json.dumps(
                        dict(
                            layers=[layer.as_dict() for layer in layers],
                            merged=[m.as_dict() for m in merged.values()],
                        ),
                        indent=2,
                    )
                    + '\n'
                )
        if not args.no_plot:
            plot = args.plot or str(
                Path(args.checkpoint).with_suffix('.density.png')
            )
            plot_densities(layers, plot)
            print(f'plot: {plot}')


if __name__ == '__main__':
    main()
