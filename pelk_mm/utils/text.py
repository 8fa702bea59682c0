"""Small pieces of messages."""

from __future__ import annotations

from collections.abc import Iterable


def first_few(items: Iterable[object], most: int = 3) -> str:
    """``'a, b, c and 5 more'``, with at most ``most`` of the items named."""
    names = [str(item) for item in items]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
