"""The clock and the budget, with a time that the test makes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.monitor.clock import PACED, PLANNED, REHEARSAL, Clock, rehearses_at

EVERY = 2 * (1 / (0.1 * PLANNED) - 1)  # steps of 1 s for a trace of 2 s


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_tracing_is_what_a_trace_takes_and_what_recording_adds():
    time = Time()
    clock = Clock(time)
    clock.start(time())
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
    clock.start(time())
    time.seconds = 40.0
    clock.traced(0.0, 1.0)
    assert (clock.tracing, clock.training) == (4.0, 100.0)


def test_before_anything_happened_the_share_is_0():
    assert Clock(Time()).share == 0.0


@given(
    st.floats(0.001, 0.5),
    st.lists(st.tuples(st.floats(0.01, 10.0), st.floats(0.001, 50.0)), min_size=1, max_size=60),
)
def test_a_budget_is_kept_by_traces_that_cost_no_more_than_is_expected(at_most, steps):
    time = Time()
    clock = Clock(time)
    for plain, trace in steps:
        clock.start(time())
        time.seconds += plain
        if clock.affords(at_most):
            cost = min(trace, clock.expected)
            time.seconds += cost
            clock.traced(0.0, cost)
            assert clock.share <= at_most * (1 + 1e-9)


def test_a_trace_is_taken_to_cost_some_rehearsals_and_a_rehearsal_some_steps():
    time = Time()
    clock = Clock(time)
    for _ in range(PACED):
        assert not clock.affords(1.0)
        clock.start(time())
        time.seconds += 1.0
    clock.start(time())
    assert clock.expected == REHEARSAL
    time.seconds = 2 * REHEARSAL / PLANNED
    assert clock.affords(0.5)
    assert not clock.affords(0.3)
    clock.rehearsed(0.0, 2.0, 7)
    assert clock.expected == 14.0
    clock.traced(0.0, 3.0)
    clock.traced(0.0, 1.0, whole=False)  # it failed
    clock.told(0.5)
    assert clock.expected == 3.5
    assert clock.tracing == 6.5


def test_a_budget_is_used_not_only_kept():
    """Steps of 1 s and traces of 2 s under 10 %: about one step in 21 is traced."""
    time = Time()
    clock = Clock(time)
    traced = 0
    for _ in range(2000):
        clock.start(time())
        time.seconds += 1.0
        if clock.affords(0.1):
            time.seconds += 2.0
            clock.traced(0.0, 2.0)
            traced += 1
    assert 0.95 * PLANNED * 0.1 <= clock.share <= 0.1
    assert traced == pytest.approx(2000 / EVERY, rel=0.1)


def test_a_budget_is_looked_at_seldom_and_a_trace_comes_as_soon_as_it_is_afforded():
    looked = []

    class Watched(Clock):
        @property
        def expected(self) -> float:
            looked.append(self._begun)
            return 50.0

    time = Time()
    clock = Watched(time)
    while not clock.affords(0.01):
        clock.start(time())
        time.seconds += 1.0
    assert time.seconds == math.ceil(50 / (PLANNED * 0.01) - 50)
    assert len(set(looked)) < 20


def test_steps_that_are_counted_beforehand_keep_the_budget_as_well():
    """Steps of 1 s, the first of them slower, and traces of 2 s under 10 %: each says when the next one is due."""
    time = Time()
    clock = Clock(time)
    due, traced = rehearses_at(0.1), 0
    for number in range(2000):
        clock.start(time())
        time.seconds += 1.0 if number else 30.0
        if number >= due:
            time.seconds += 2.0
            clock.traced(1.0, 2.0)
            due = number + 1 + clock.steps_until(0.1)
            traced += 1
            assert clock.share <= 0.1
    assert 0.9 * PLANNED * 0.1 <= clock.share <= 0.1
    assert traced == pytest.approx(2000 / EVERY, rel=0.1)


def test_before_anything_was_recorded_no_steps_are_waited_for():
    assert Clock(Time()).steps_until(0.1) == 0
