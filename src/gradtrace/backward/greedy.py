"""The algebra of greedy paths: ordinary gradients, and for each scalar the consumer with the largest |w(u, v) g_u|.

Algorithm 1 of the chapter: run backpropagation, then step from a scalar to the consumer u that maximises |w(u, v) g_u|
with the *ordinary* gradient g_u. One walk does both: what the sum has come to at a value is what the winners of its
arguments are chosen by. Gradients are in float64 whatever the model's precision, so that rounding decides nothing but
what is a tie to 16 digits.
"""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor

from ..kernels.gradient import gradient
from ..kernels.shared_exponent import OutOfRange, Plane
from ..recording.record import Record, Value
from .arrivals import Arrivals
from .best import Best, Strongest, left_by
from .elements import Elements, Reached
from .example_labels import Labels
from .walk import Algebra, Edge, Track

BLOCK = 1 << 22  # scalars looked at at a time: each example has as many gradients as there are parameters
LEAST = 2.0**-500  # a product of two numbers that are not less than this is one that float64 holds

Both = tuple[Reached, Arrivals]


def greedy(
    record: Record,
    loss: Value,
    labels: Labels | None = None,
    track: Track = iter,
    *,
    wanted: Container[int] | None = (),
    among: Container[int] | None = None,
) -> Best:
    """Find the greedy path of every scalar.

    Args:
        record, loss, labels, track, among: as for `walk`.
        wanted: ids of values whose gradients are kept beside those of leaves and the loss; None: all.

    Raises:
        MissingRule, NotANumber: as `walk`.
        OutOfRange: gradients are not finite, or too small for float64.
    """
    algebra = Greedy(loss, labels, wanted)
    return left_by(algebra, algebra.found, record, loss, track, among)


class Greedy(Algebra[Both, tuple[Reached, Plane]]):
    """A sum, and the winners of (max, ×) that start again from it at every value.

    Args:
        loss, labels, wanted: as for `greedy`.
    """

    def __init__(self, loss: Value, labels: Labels | None, wanted: Container[int] | None = ()) -> None:
        self._sum = Elements(gradient(torch.float64), None, labels)
        self._strongest = Strongest(torch.float64, loss, labels, wanted)
        self.found = self._strongest.found
        self.found.gradients = {}

    def begin(self, loss: Value) -> Both:
        return self._sum.begin(loss), self._strongest.begin(loss)

    def finish(self, value: Value, arrived: Both, *, alone: bool) -> tuple[Reached, Plane]:
        weights = self._strongest.finish(value, arrived[1], alone=alone)
        if weights.high > 0 and math.ldexp(weights.low, weights.exponent) < LEAST:
            raise OutOfRange
        g = self._sum.finish(value, arrived[0], alone=False)
        plane = absolute(g.g[0])  # the weights that winners of arguments are chosen by
        if value.id in self.found.planes and self.found.gradients is not None:
            self.found.gradients[value.id] = plane
        return g, plane

    def send(self, edge: Edge, g: tuple[Reached, Plane], known: Both | None) -> Both:
        sums, winners = (None, None) if known is None else known
        return self._sum.send(edge, g[0], sums), self._strongest.send(edge, g[1], winners)


def absolute(g: Tensor) -> Plane:
    """Give absolute numbers as a plane.

    Raises:
        OutOfRange: some are not finite, or too small.
    """
    data = g.abs().to(torch.float64)
    high, low = 0.0, math.inf
    for part in data.reshape(-1).split(BLOCK) if data.numel() else ():
        high = max(high, float(part.max()))
        low = min(low, float(torch.where(part > 0, part, math.inf).min()))
        if not high < math.inf:
            raise OutOfRange
    if low < LEAST:
        raise OutOfRange
    return Plane(data, 0, high, low, owned=True)
