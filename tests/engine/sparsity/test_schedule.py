"""When masks move, and by how much."""

import math

import pytest

from pelk_mm.engine.sparsity.schedule import Schedule


def test_prune_rate_is_a_cosine():
    schedule = Schedule(0.5, 0.005, update_interval=20, end=100)
    rates = [schedule.rate_at(step) for step in range(0, 150)]
    assert rates[0] == 0.5
    assert rates[50] == pytest.approx((0.5 + 0.005) / 2)
    assert rates[25] == pytest.approx(
        0.005 + 0.495 * (1 + math.cos(math.pi / 4)) / 2
    )
    assert rates[100] == rates[149] == pytest.approx(0.005)
    assert rates == sorted(rates, reverse=True)


def test_updates_stop_before_the_end():
    schedule = Schedule(0.5, 0.005, update_interval=20, end=60)
    assert [s for s in range(100) if schedule.moves_at(s)] == [20, 40]
    near = [s for s in range(100) if schedule.moves_within(s, 3)]
    assert near == [17, 18, 19, 37, 38, 39]


def test_no_interval_is_no_update():
    schedule = Schedule(0.5, 0.005, update_interval=None, end=60)
    assert not any(schedule.moves_within(step, 3) for step in range(100))
