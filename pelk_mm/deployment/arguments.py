"""What the export tools ask on the command line."""

from __future__ import annotations

import argparse


class ExportParser(argparse.ArgumentParser):
    """A parser with the arguments that every export has.

    ``--out`` must end in ``suffix``; ``sizes`` says which image sizes
    ``--dynamic`` stands for, such as ``'any such size'``.
    """

    def __init__(self, description: str, suffix: str, sizes: str) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout)
        self._suffix = suffix
        self.add_argument(
            'config', help='config of the training, or of the merged model'
        )
        self.add_argument(
            'checkpoint', help='its weights; those of a training are merged'
        )
        self.add_argument(
            '--shape',
            nargs=2,
            type=int,
            required=True,
            metavar=('H', 'W'),
            help='image size in pixels, multiples of 32',
        )
        self.add_argument(
            '--dynamic',
            action='store_true',
            help=f'take any number of images of {sizes} (default: one image '
            'of --shape)',
        )
        self.add_argument('--out', required=True, metavar='FILE')

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        parsed = super().parse_args(*args, **kwargs)
        if not parsed.out.endswith(self._suffix):
            self.error(f'--out must end in {self._suffix}, got {parsed.out}')
        return parsed
