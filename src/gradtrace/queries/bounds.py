"""How far the strongest path can be from a path that is known: an upper bound from `Power`, without a search.

Power(p) is at least as large as the weight of every path, and a matrix product finds it. One concrete path is a
lower bound on the strongest. Between the two lies the strongest path, whoever found the concrete one, and however.
Passes for one value go through nothing but what it leads to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..backward.several import ask
from ..recording.record import Record, Value
from ..semirings.power import Power
from .forest import Forest, plant
from .paths import Path, flat_index

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


@dataclass(eq=False)
class Bounding:
    """Bounds the strongest paths from the scalars of one value."""

    record: Record
    loss: Value
    value: Value
    _norms: dict[float, Tensor | None] = field(default_factory=dict)

    @cached_property
    def _among(self) -> set[int]:
        return self.record.after([self.value])

    @cached_property
    def greedy(self) -> Forest:
        """The greedy winners of the value's scalars, and of all that they lead to."""
        return plant(self.record, self.loss, "greedy", leaves=[self.value])

    def of(self, index: tuple[int, ...] | int, p: float, path: Path) -> Bound:
        """Bound the strongest path from one scalar, given some path from there."""
        eps, steps = torch.finfo(self.value.dtype).eps, len(path.steps)
        upper, slack = self._upper(index, p), 16 * eps * (1 + steps)  # a few roundings a step
        if math.isfinite(upper):  # and of the logarithms, which are float64
            slack += 8 * torch.finfo(torch.float64).eps * abs(upper)
        return Bound(path, p, upper, slack)

    def _upper(self, index: tuple[int, ...] | int, p: float) -> float:
        if p not in self._norms:
            found = ask(self.record, self.loss, [self.value], [Power(p)], log2=True, among=self._among)[0]
            self._norms[p] = found.get(self.value.id)
        norm = self._norms[p]
        return -math.inf if norm is None else float(norm.flatten()[flat_index(self.value, index)])
