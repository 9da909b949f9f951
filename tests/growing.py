"""How long a question takes, for tests that compare two sizes of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REPEATS, LONG = 4, 1.0


def least(ask: Callable[[], object]) -> float:
    """Give the least CPU seconds of a few repeats, or the first if it is long, in which no warm-up shows."""
    taken: list[float] = []
    with _alone():
        while len(taken) < REPEATS and not (taken and taken[0] > LONG):
            start = time.process_time()
            ask()
            taken.append(time.process_time() - start)
    return min(taken)


@contextmanager
def _alone() -> Iterator[None]:
    """Let the collector look at new objects only: all those of a long run of tests take it a second, at either size."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
