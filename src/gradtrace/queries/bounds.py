"""How far the strongest path can be from a path that is known: an upper bound from `Power`, without a search.

Power(p) is at least as large as the weight of every path, and a matrix product finds it. One concrete path is a
lower bound on the strongest. Between the two lies the strongest path, whoever found the concrete one, and however.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .paths import Path

SLACK = 1e-9  # bits that rounding may take from an upper bound, in float64


@dataclass(frozen=True)
class Bound:
    """The strongest path's weight, from below and from above.

    With N paths the gap can be log2(N) / p bits even where the concrete path is the strongest.

    Attributes:
        path: a concrete path, whose weight is the lower bound.
        p: of the `Power` that gave the upper bound.
        upper_log2: log2 of that bound.
        slack: bits that rounding may have taken from it.

    >>> Bound(Path("w", (0,), "greedy", ()), 8.0, 0.5).gap
    0.5
    """

    path: Path
    p: float
    upper_log2: float
    slack: float = SLACK

    @property
    def lower_log2(self) -> float:
        """The concrete path's log2 weight."""
        return self.path.log2_weight

    @property
    def gap(self) -> float:
        """The strongest path is at most 2^gap times as strong as the concrete one."""
        return max(0.0, self.upper_log2 - self.lower_log2)

    @property
    def holds(self) -> bool:
        """Tell whether the bound is above the path, as mathematics wants it (up to rounding)."""
        return self.upper_log2 >= self.lower_log2 - self.slack

    @property
    def best(self) -> bool:
        """Tell whether no path is stronger than the concrete one by more than rounding: the bound is as low as it."""
        return self.gap <= self.slack

    def __str__(self) -> str:
        times = 2**self.gap if self.gap < 1000 else math.inf
        return (
            f"{self.path.kind} path of {self.path.start}{list(self.path.index)}: 2^{self.lower_log2:.2f}; "
            f"the strongest is at most 2^{self.upper_log2:.2f} by power:{self.p:g}, {times:.3g}× that"
        )
