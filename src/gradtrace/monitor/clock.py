"""How much of a training's time tracing takes: measured, and kept within a budget.

Tracing is what runs after a recorded forward pass, by how much longer that pass took than the others did (their
median), and what is done at every step to see that it is not traced: some 20 µs. What all that does to the steps after
it, by displacing what was in caches, is not measured, but left room for.

A budget holds from the first step on. What a trace costs is not known before one was made: it is taken to cost a
multiple of a rehearsal, one bare pass back, and that some steps.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

WINDOW = 32  # forward passes without a recording of which the median is taken
PLANNED = 0.85  # of a budget: steps after a trace take longer too, measured at up to a seventh of what it takes itself
COSTS = 5  # traces of which the dearest is what the next one is expected to take
PACED = 8  # steps after which it is known how fast they come
REHEARSAL = 16  # steps that a rehearsal is taken to cost: measured at 2 to 17, the more the smaller a model is
DEARER = 18  # times a rehearsal that a trace is taken to cost, for each kind and semiring: measured at 5 to 17


class Clock:
    """The time of a training, and of its traces, in seconds.

    Args:
        now: gives the time.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._began: float | None = None
        self._before = (0.0, 0.0)  # of the processes that this one goes on from: tracing, training
        self._traced = 0.0
        self._recorded: list[float] = []  # forward passes, before it was known what one takes without a recording
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._steps: deque[float] = deque(maxlen=WINDOW)  # from the beginning of one to that of the next
        self._last = 0.0
        self._costs: deque[float] = deque(maxlen=COSTS)
        self._guess = 0.0  # what a trace costs, before one was made
        self._begun = 0  # steps
        self._wakes = 0  # of them, when it is looked again whether a trace is afforded

    def start(self, now: float) -> None:
        """Note that a step begins; the training began when this was called first."""
        if self._began is None:
            self._began = now
        else:
            self._steps.append(now - self._last)
        self._last = now
        self._begun += 1

    def resume(self, tracing: float, training: float) -> None:
        """Go on from the times of a process that has ended."""
        self._before = tracing, training

    def plain(self, seconds: float) -> None:
        """Note a forward pass that was not recorded."""
        self._plain.append(seconds)

    def own(self, began: float) -> None:
        """Note what was done from a moment until now as the monitor's own."""
        self._traced += self.now() - began

    def traced(self, forward: float, trace: float, *, whole: bool = True) -> None:
        """Note a recorded forward pass, and the trace after it.

        Args:
            whole: whether the trace tells what another one costs; one that failed does not.
        """
        cost = self._cost(forward, trace)
        self._traced += cost
        if not self._plain:
            self._recorded.append(forward)
        if whole:
            self._costs.append(cost)

    def rehearsed(self, forward: float, trace: float, times: int) -> None:
        """Note a recorded forward pass and a bare pass back: a trace is taken to cost so many times as much."""
        self.traced(forward, trace, whole=False)
        self._guess = times * self._cost(forward, trace)

    def _cost(self, forward: float, trace: float) -> float:
        return trace + max(0.0, forward - self._usual(forward))

    def told(self, seconds: float) -> None:
        """Note what writing down the last trace took."""
        self._traced += seconds
        if self._costs:
            self._costs[-1] += seconds

    def _usual(self, otherwise: float) -> float:
        """Give what a forward pass takes without a recording; where none was measured, what is given."""
        return median(self._plain) if self._plain else otherwise

    @property
    def tracing(self) -> float:
        """What tracing took."""
        recording = sum(max(0.0, seconds - self._usual(seconds)) for seconds in self._recorded)
        return self._before[0] + self._traced + recording

    @property
    def training(self) -> float:
        """What the training took, tracing included."""
        return self._before[1] + (self.now() - self._began if self._began is not None else 0.0)

    @property
    def share(self) -> float:
        """Tracing's part of the training's time; 0 before anything was measured."""
        return self.tracing / self.training if self.training else 0.0

    @property
    def expected(self) -> float:
        """What the next recording, and what is made of it, is expected to take."""
        return max(self._costs, default=0.0) or self._guess or REHEARSAL * self._pace

    @property
    def _pace(self) -> float:
        return median(self._steps) if self._steps else 0.0

    def steps_until(self, at_most: float) -> int:
        """Give after how many more steps another trace leaves tracing's share at `at_most`, at the pace of the last."""
        missing = (self.tracing + self.expected) / (PLANNED * at_most) - self.expected - self.training
        return max(0, math.ceil(missing / self._pace)) if self._pace > 0 else 0

    def affords(self, at_most: float) -> bool:
        """Tell whether another trace leaves tracing's share at `at_most`.

        It is looked again when half the time that was missing has passed: a step costs next to nothing.
        """
        if len(self._steps) < PACED or self._begun < self._wakes:
            return False
        if self.tracing + self.expected <= PLANNED * at_most * (self.training + self.expected):
            return True
        self._wakes = self._begun + self.steps_until(at_most) // 2
        return False


def rehearses_at(at_most: float) -> int:
    """Give the number of the step, of those that several ranks make, at which they rehearse."""
    return max(PACED, math.ceil(REHEARSAL / (PLANNED * at_most)))
