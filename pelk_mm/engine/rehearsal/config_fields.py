"""Fields of a model's config that say what a part of it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ...utils.config import type_name


def backbone_place(config: Config) -> str:
    """Where the config of the backbone is, by dotted name."""

    def find(node: Any, where: str) -> str | None:
        if isinstance(node, (list, tuple)):
            node = dict(enumerate(node))
        if not isinstance(node, Mapping):
            return None
        if type_name(node) == 'PeLK':
            return where
        found = (find(value, f'{where}.{key}') for key, value in node.items())
        return next((place for place in found if place), None)

    return find(config.get('model'), 'model') or 'model.backbone'


def part_of(config: Config, name: str) -> tuple[str, Mapping]:
    """The innermost config that a module is built of, and its place."""
    way = list(_nodes(config.get('model'), name))
    return way[-1] if way else ('', {})


def channel_advice(
    name: str, expected: int, count: int, gives: list[int], config: Config
) -> str:
    """Fields of the config that say the expected channels, and their cure.

    A module ``name`` expected some channels and was given ``count``; the
    backbone gives ``gives``. ``'model.neck.in_channels=[8, 16]'``, or '' where
    no field says so.
    """
    way = list(_nodes(config.get('model'), name))
    fields = [
        (f'{where}.{key}', value, node)
        for where, node in reversed(way)
        for key, value in _channel_fields(node)
        if value == expected
        or (isinstance(value, Sequence) and expected in value)
        or (isinstance(value, Sequence) and sum(value) == expected)
    ]
    inputs = [f for f in fields if _of_input(f[0].rpartition('.')[2])]
    # Those of one part, the innermost that has any.
    chosen = [f for f in inputs or fields if f[2] is (inputs or fields)[0][2]]
    return ' or '.join(
        f'{field}={_cured(value, expected, count, gives, node)}'
        for field, value, node in chosen[:3]
    )


def _of_input(key: str) -> bool:
    return 'in_' in key or 'c1' in key


def _nodes(node: Any, name: str) -> Iterator[tuple[str, Mapping]]:
    """Nodes of a model's config on the way to a module, by dotted name."""
    where = 'model'
    for part in ['', *name.split('.')]:
        if part and isinstance(node, Mapping):
            # mmdetection builds both networks of one field.
            if part in ('student', 'teacher') and part not in node:
                part = 'detector'
            node = node.get(part)
            where += f'.{part}'
        elif part and isinstance(node, (list, tuple)) and part.isdigit():
            node = node[int(part)] if int(part) < len(node) else None
            where += f'.{part}'
        if isinstance(node, (list, tuple)):
            # One neck after the other, or one head beside the other.
            continue
        if not isinstance(node, Mapping):
            return
        if part:
            yield where, node


def _channel_fields(node: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Numbers of channels in a part's config, the part's own first."""
    inner = []
    for key, value in node.items():
        if key == 'arch':
            continue  # the backbone's own, which others follow
        if isinstance(value, Mapping):
            inner.append((f'{prefix}{key}.', value))
        elif 'channels' in key or key in ('embed_dims', 'in_features'):
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if numbers and all(isinstance(n, int) for n in numbers):
                yield f'{prefix}{key}', value
    for key, value in inner:
        yield from _channel_fields(value, key)


def _cured(
    value: Any, expected: int, count: int, gives: list[int], node: Mapping
) -> Any:
    """What a field has to be for the input that came."""
    if isinstance(value, int):
        return count
    # Some parts take a tuple alone.
    return type(value)(_all_cured(value, expected, count, gives, node))


def _all_cured(
    value: Sequence, expected: int, count: int, gives: list[int], node: Mapping
) -> list[int]:
    indices = node.get('in_index')
    fitting = gives
    if isinstance(indices, Sequence) and gives:
        fitting = [gives[i] for i in indices if -len(gives) <= i < len(gives)]
    if count in fitting and len(fitting) == len(value):
        place = list(value).index(expected) if expected in value else None
        backwards = fitting[::-1]
        # YOLO's necks count from the last output.
        if place is not None and fitting[place] != count == backwards[place]:
            return backwards
        return fitting
    if count == sum(fitting):
        return fitting  # several, made into one
    if count in fitting and expected in value:
        # Some of the outputs, in a row.
        first = fitting.index(count) - list(value).index(expected)
        some = fitting[max(first, 0) : first + len(value)]
        if len(some) == len(value):
            return some
    return [count if v == expected else v for v in value]
