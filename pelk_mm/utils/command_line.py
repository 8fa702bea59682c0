"""What the tools have in common: safe loading, and errors in one line."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import DictAction

from .errors import LaunchError, explain, from_config
from .unpickling import weights_only

#: Set to 1, it shows where the error of a tool was raised.
TRACEBACK = 'PELK_MM_TRACEBACK'


class ConfigOptions(DictAction):
    """``--cfg-options KEY=VALUE ...``; anything else is a usage error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value.lstrip('=')]
        if wrong:
            raise argparse.ArgumentError(
                self, f'expected KEY=VALUE, got {wrong[0]!r}'
            )
        super().__call__(parser, namespace, values, option_string)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What tools that start a run have in common."""
    add = parser.add_argument
    text = 'override fields of the config, as train_dataloader.batch_size=2'
    options = dict(nargs='+', action=ConfigOptions, metavar='KEY=VALUE')
    add('--cfg-options', **options, help=text)
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    text = 'set by the scripts dist_*.sh and slurm_*.sh'
    add('--launcher', choices=launchers, default='none', help=text)
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    add('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


@contextmanager
def command(
    *expected: type[Exception], about: str | None = None
) -> Iterator[None]:
    """Run a tool: no checkpoint runs code, wrong input ends in one line.

    That line is for a :class:`LaunchError`, for the errors that a tool
    expects, and for whatever goes wrong while something is built from a
    config. Everything else is a defect, and keeps its traceback. A message
    that does not name the file ``about`` begins with it.
    """
    with weights_only():
        try:
            yield
        except (LaunchError, *expected) as error:
            _end(error, explain(error), about)
        except Exception as error:
            if not from_config(error):
                raise
            _end(error, f'the config cannot be built: {explain(error)}')


def _end(error: BaseException, text: str, about: str | None = None) -> None:
    for_people = isinstance(error, LaunchError)
    if os.environ.get(TRACEBACK) == '1':
        traceback.print_exception(error)
    elif not for_people or error.__cause__ is not None:
        text += f' ({TRACEBACK}=1 shows where)'
    if about is not None and not for_people and about not in text:
        text = f'{about}: {text}'
    raise SystemExit(f'error: {text}') from None
