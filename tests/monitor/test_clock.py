"""The clock and the budget, with a time that the test makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.monitor.clock import PLANNED, Clock

EVERY = 2 * (1 / (0.1 * PLANNED) - 1)  # steps of 1 s for a trace of 2 s


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_tracing_is_what_a_trace_takes_and_what_recording_adds():
    time = Time()
    clock = Clock(time)
    clock.start()
    for _ in range(9):
        clock.plain(1.0)
    time.seconds = 20.0
    clock.traced(forward=1.5, trace=2.0)
    clock.told(0.5)
    assert clock.tracing == pytest.approx(0.5 + 2.0 + 0.5)
    assert clock.training == 20.0
    assert clock.share == pytest.approx(3.0 / 20.0)


def test_a_recording_made_before_any_other_forward_pass_is_compared_with_those_after_it():
    clock = Clock(Time())
    clock.traced(forward=3.0, trace=1.0)
    assert clock.tracing == 1.0  # nothing to compare with yet
    clock.plain(1.0)
    assert clock.tracing == 3.0


def test_a_recorded_pass_that_was_quicker_takes_nothing_off():
    clock = Clock(Time())
    clock.plain(2.0)
    clock.traced(forward=1.0, trace=1.0)
    assert clock.tracing == 1.0


def test_it_goes_on_from_another_process():
    time = Time()
    clock = Clock(time)
    clock.resume(3.0, 60.0)
    clock.start()
    time.seconds = 40.0
    clock.traced(0.0, 1.0)
    assert (clock.tracing, clock.training) == (4.0, 100.0)


def test_before_anything_happened_the_share_is_0():
    assert Clock(Time()).share == 0.0


@given(
    st.floats(0.001, 0.5),
    st.lists(st.tuples(st.floats(0.01, 10.0), st.floats(0.001, 50.0)), min_size=1, max_size=60),
)
def test_after_the_first_trace_a_budget_is_kept_by_traces_that_cost_no_more_than_the_last_ones(at_most, steps):
    time = Time()
    clock = Clock(time)
    clock.start()
    dearest = 0.0
    for plain, trace in steps:
        time.seconds += plain
        first = not dearest
        if clock.affords(at_most):
            cost = trace if first else min(trace, dearest)
            dearest = max(dearest, cost)
            time.seconds += cost
            clock.traced(0.0, cost)
            if not first:
                assert clock.share <= at_most * (1 + 1e-9)


def test_a_budget_is_used_not_only_kept():
    """Steps of 1 s and traces of 2 s under 10 %: about one step in 21 is traced."""
    time = Time()
    clock = Clock(time)
    clock.start()
    traced = 0
    for _ in range(2000):
        time.seconds += 1.0
        if clock.affords(0.1):
            time.seconds += 2.0
            clock.traced(0.0, 2.0)
            traced += 1
    assert 0.95 * PLANNED * 0.1 <= clock.share <= 0.1
    assert traced == pytest.approx(2000 / EVERY, rel=0.05)


def test_steps_that_are_counted_beforehand_keep_the_budget_as_well():
    """Steps of 1 s, the first of them slower, and traces of 2 s under 10 %: each says when the next one is due."""
    time = Time()
    clock = Clock(time)
    due, traced = 8, 0
    for number in range(2000):
        clock.start()
        time.seconds += 1.0 if number else 30.0
        if number >= due:
            time.seconds += 2.0
            clock.traced(1.0, 2.0)
            due = number + 1 + clock.steps_until(0.1)
            traced += 1
            assert clock.share <= 0.1 or traced == 1
    assert 0.9 * PLANNED * 0.1 <= clock.share <= 0.1
    assert traced == pytest.approx(2000 / EVERY, rel=0.1)


def test_before_anything_was_recorded_no_steps_are_waited_for():
    assert Clock(Time()).steps_until(0.1) == 0
