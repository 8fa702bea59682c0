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
        add = self.add_argument
        add('config', help='config of the training, or of the merged model')
        add('checkpoint', help='its weights; those of a training are merged')
        text = 'image size in pixels, multiples of 32'
        size = dict(type=int, metavar=('H', 'W'), help=text)
        add('--shape', nargs=2, required=True, **size)
        text = f'any number of images of {sizes} (default: one of --shape)'
        add('--dynamic', action='store_true', help=text)
        add('--out', required=True, metavar='FILE')

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        parsed = super().parse_args(*args, **kwargs)
        if not parsed.out.endswith(self._suffix):
            self.error(f'--out must end in {self._suffix}, got {parsed.out}')
        return parsed
