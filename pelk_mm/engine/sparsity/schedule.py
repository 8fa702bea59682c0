"""When masks move, and how many weights at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ops.checks import check_integer, check_number


@dataclass
class Schedule:
    """Updates at even distances that exchange less and less.

    As for ``DynamicSparsityHook``; ``end`` is None while it is not known.
    """

    prune_rate: float
    min_prune_rate: float
    update_interval: int | None
    end: int | None

    def __post_init__(self) -> None:
        for name in ('prune_rate', 'min_prune_rate'):
            setattr(self, name, check_number(name, getattr(self, name), 0, 1))
        if self.min_prune_rate > self.prune_rate:
            raise ValueError(
                f'min_prune_rate={self.min_prune_rate} exceeds prune_rate='
                f'{self.prune_rate}, from which the cosine comes down to it'
            )
        for name in ('update_interval', 'end'):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)

    def rate_at(self, step: int) -> float:
        """Share of the active weights to drop: a cosine, flat from the end."""
        cosine = math.cos(math.pi * min(step, self.end) / self.end)
        span = self.prune_rate - self.min_prune_rate
        return self.min_prune_rate + span * (1 + cosine) / 2

    def moves_at(self, step: int) -> bool:
        """Whether masks move after a number of optimizer steps."""
        if self.update_interval is None:
            return False
        # Not at the very end: what is dropped there nothing makes up for.
        return 0 < step < self.end and step % self.update_interval == 0

    def moves_within(self, step: int, ahead: int) -> bool:
        """Whether masks move in one of the next ``ahead`` steps."""
        return any(self.moves_at(step + i + 1) for i in range(ahead))
