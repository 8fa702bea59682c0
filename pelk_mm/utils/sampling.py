"""Picking some of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar('Item')


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of some items, at even distances, in their order.

    The first and the last are among them if ``count`` is above 1.
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[place] for place in places.round().astype(int)]
