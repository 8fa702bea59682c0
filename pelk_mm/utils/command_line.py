"""What the tools have in common: safe loading, and errors in one line."""

from __future__ import annotations

import argparse
import gc
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .errors import LaunchError, explain, from_config
from .output import fewer_warnings
from .trust import weights_only

#: Set to 1, it shows where the error of a tool was raised.
TRACEBACK = 'PELK_MM_TRACEBACK'


#: Text in quotes of its own: an item of a list, or the whole.
_QUOTED = re.compile(
    r"""(?:^|(?<=[,(\[]))\s*(["'])((?:(?!\1).)*)\1\s*(?=[,)\]]|$)"""
)
#: What only a path or a URL starts with.
_PATH = re.compile(r'\s*(/|\.\.?/|~|\w+://)')


class ConfigOptions(argparse.Action):
    """``--cfg-options KEY=VALUE ...``; anything else is a usage error.

    :func:`parse_value` reads the values.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for given in values:
            key, separator, value = given.partition('=')
            if not (key and separator):
                text = f'expected KEY=VALUE, got {given!r}'
                raise argparse.ArgumentError(self, text)
            try:
                options[key] = parse_value(value)
            except ValueError as error:
                text = f'{given}: {error}'
                raise argparse.ArgumentError(self, text) from error
        setattr(namespace, self.dest, options)


def add_config_options(
    parser: argparse.ArgumentParser,
    dest: str = 'cfg_options',
    text: str = 'override fields of the config',
) -> None:
    """Add ``--cfg-options``, its help beginning with ``text``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        dest=dest,
        help=f'{text}, as train_dataloader.batch_size=2; a,b and [a,b] are '
        'lists, (a,b) is a tuple; text may have spaces, and a path commas; '
        'quote other text with commas twice, as \'KEY="a,b"\'',
    )


def parse_value(text: str) -> Any:
    """The value of an option that was typed as ``text``.

    Lists are ``a,b`` or ``[a,b]``, tuples ``(a,b)``, and both may be nested;
    numbers, ``None``, ``true`` and ``false`` are what they say, the rest is
    text. Blanks around an item are dropped, those in it are kept. What has
    quotes of its own is text; around a whole list in brackets they are
    dropped.

    A path is not split at its commas: one that starts as ``/a``, ``./a``,
    ``~`` or ``s3://`` does, unless all items do; and one that exists, or of
    which a folder with a comma in its name does.

    Raises:
        ValueError: If a list has brackets that are not closed.
    """
    text = text.strip()
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        inner = quoted[2]
        return parse_value(inner) if _in_brackets(inner) else inner
    if ',' in text and _is_path(text):
        return text
    items = _split(text) if ',' in text else [text]
    if len(items) > 1:
        return _parse_items(items)
    if _in_brackets(text):
        inside = _parse_items(_split(text[1:-1]))
        return tuple(inside) if text[0] == '(' else inside
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    return None if text == 'None' else text


def _parse_items(items: list[str]) -> list:
    if not items[-1]:
        items = items[:-1]  # `a,` is a list of one
    return [parse_value(item) for item in items]


def _in_brackets(text: str) -> bool:
    pair = text[:1] + text[-1:] in ('()', '[]')
    return pair and min(_levels(text[1:-1]), default=0) >= 0


def _split(text: str) -> list[str]:
    """What is between the commas that are in no quotes and no brackets."""
    levels = _levels(text)
    if levels and levels[-1] != 0:
        raise ValueError(
            'the brackets are not closed; quote text with brackets and commas '
            'twice, as \'"text"\''
        )
    plain = _hide_quoted(text)
    cuts = [i for i, char in enumerate(plain) if char == ',' and not levels[i]]
    ends = zip([-1, *cuts], [*cuts, len(text)], strict=True)
    return [text[start + 1 : end] for start, end in ends]


def _levels(text: str) -> list[int]:
    """How many brackets are open behind each character."""
    steps = [(c in '([') - (c in ')]') for c in _hide_quoted(text)]
    return list(accumulate(steps))


def _hide_quoted(text: str) -> str:
    return _QUOTED.sub(lambda quoted: '"' * len(quoted[0]), text)


def _is_path(text: str) -> bool:
    if _PATH.match(text):
        return not all(map(_PATH.match, text.split(',')))
    paths = [Path(text), *Path(text).parents] if '/' in text else []
    return any(',' in str(path) and path.exists() for path in paths)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What tools that start a run have in common."""
    add_config_options(parser)
    add = parser.add_argument
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

    Of the libraries' warnings, those that nobody can act on are not shown.

    That line is for a :class:`LaunchError`, for the errors that a tool
    expects, and for whatever goes wrong while something is built from a
    config. Everything else is a defect, and keeps its traceback. A message
    that does not name the file ``about`` begins with it.
    """
    with weights_only(), fewer_warnings():
        try:
            yield
            # Threads of gloo that free a tensor while Python ends abort the
            # process. They end with the group, which the model holds, too: it
            # and its hooks are in reference cycles.
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
                gc.collect()
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
