"""Compare variants of one model on the same images.

A variant is CONFIG CHECKPOINT (merged or not), FILE.onnx or FILE.pt2. Exit
status: 0 if no output is further from the reference than the tolerance, 1 if
one is, or if something cannot be compared, as an image that cannot be read.
"""

import argparse
import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from pelk_mm.deployment.compare import TOLERANCE, Difference, compare, largest
from pelk_mm.deployment.variants import Variant, load_images, load_variant
from pelk_mm.utils.command_line import command
from pelk_mm.utils.output import Steps, quiet


def parse_args() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=layout
    )
    add = parser.add_argument
    files = dict(nargs='+', required=True, metavar=('FILE', 'CHECKPOINT'))
    add('--reference', help='what the others should compute', **files)
    several = 'may be given several times'
    add('--candidate', action='append', help=several, **files)
    folder = 'an image or a folder of them (default: random ones)'
    add('--images', metavar='DIR', help=folder)
    most = 'largest number of images (default: %(default)s)'
    add('--num', type=int, default=4, help=most)
    text = (
        'size of the images in pixels, multiples of 32 (default: that of the '
        'first file that says one, or 224 224)'
    )
    add('--shape', nargs=2, type=int, metavar=('H', 'W'), help=text)
    text = 'largest difference that passes, over the largest value (default: '
    text += '{fp32:g}, or {fp16:g} for files in half precision)'
    add('--tolerance', type=float, help=text.format_map(TOLERANCE))
    args = parser.parse_args()
    for given in (args.reference, *args.candidate):
        if len(given) > 2:
            got = ' '.join(given)
            text = f'expected CONFIG CHECKPOINT or one file, got {got}'
            parser.error(text)
    if args.num < 1:
        parser.error(f'--num must be at least 1, got {args.num}')
    return args


def print_table(
    found: dict[Variant, list[Difference]], tolerance: dict[Variant, float]
) -> None:
    # Paths are long; what tells them apart must not be cut off.
    table = Table(Column('variant', overflow='fold'))
    for title in ('output', 'largest difference', 'of its largest value', ''):
        table.add_column(title, no_wrap=True)
    for variant, differences in found.items():
        name = escape(variant.name)
        for output in differences:
            far = f'{output.absolute:.1e}', f'{output.relative:.1e}'
            most = tolerance[variant]
            verdict = 'ok' if output.relative <= most else 'too far'
            verdict += f' (at most {most:g})'
            table.add_row(name, output.name, *far, verdict)
            name = ''
    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, width=width).print(table)


def run(args: argparse.Namespace) -> bool:
    variants = []
    with Steps() as steps:
        for given in (args.reference, *args.candidate):
            steps.next(f'loading {" ".join(given)}')
            variants.append(load_variant(*given))
    images = load_images(variants, args.images, args.num, args.shape)
    for reason in images.skipped:
        print(f'skipped: {reason}', file=sys.stderr)
    reference, *candidates = variants
    found = {candidate: [] for candidate in candidates}
    for image in track(images, 'comparing', console=Console(stderr=True)):
        expected = reference(image)
        for candidate in candidates:
            found[candidate] += compare(expected, candidate(image))
    found = {candidate: largest(each) for candidate, each in found.items()}
    height, width = images.shape
    print(
        f'{len(images)} images of {height} x {width} pixels, reference: '
        f'{reference.name}'
    )
    tolerance = {
        each: max(each.tolerance, reference.tolerance) for each in candidates
    }
    if args.tolerance is not None:
        tolerance = dict.fromkeys(candidates, args.tolerance)
    print_table(found, tolerance)
    close = all(
        output.relative <= tolerance[candidate]
        for candidate, outputs in found.items()
        for output in outputs
    )
    return close and not images.skipped


def main() -> int:
    args = parse_args()
    with command(OSError, RuntimeError, ValueError), quiet():
        return 0 if run(args) else 1


if __name__ == '__main__':
    sys.exit(main())
