"""How much of a training's time tracing takes: measured, and kept within a budget.

Tracing is what runs after a recorded forward pass, and by how much longer that pass took than the others did (their
median). What a trace does to the steps after it, by displacing what was in caches, is not measured, but left room for.
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
        self._recorded: list[float] = []
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._steps: deque[float] = deque(maxlen=WINDOW)  # from the beginning of one to that of the next
        self._last = 0.0
        self._costs: deque[float] = deque(maxlen=COSTS)

    def start(self) -> None:
        """Note that a step begins; the training began when this was called first."""
        now = self.now()
        if self._began is None:
            self._began = now
        else:
            self._steps.append(now - self._last)
        self._last = now

    def resume(self, tracing: float, training: float) -> None:
        """Go on from the times of a process that has ended."""
        self._before = tracing, training

    def plain(self, seconds: float) -> None:
        """Note a forward pass that was not recorded."""
        self._plain.append(seconds)

    def traced(self, forward: float, trace: float) -> None:
        """Note a recorded forward pass, and the trace after it."""
        self._recorded.append(forward)
        self._traced += trace
        self._costs.append(trace + max(0.0, forward - self._usual(forward)))

    def told(self, seconds: float) -> None:
        """Note what writing down the last trace took."""
        self._traced += seconds
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

    def steps_until(self, at_most: float) -> int:
        """Give after how many more steps another trace leaves tracing's share at `at_most`, at the pace of the last."""
        cost = max(self._costs, default=0.0)
        missing = (self.tracing + cost) / (PLANNED * at_most) - cost - self.training
        pace = median(self._steps) if self._steps else 0.0
        return max(0, math.ceil(missing / pace)) if pace > 0 else 0

    def affords(self, at_most: float) -> bool:
        """Tell whether another trace leaves tracing's share at `at_most`; the first one is made to learn its cost."""
        if not self._costs:
            return True
        cost = max(self._costs)
        return self.tracing + cost <= PLANNED * at_most * (self.training + cost)
