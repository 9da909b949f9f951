"""The algebra of greedy paths: ordinary gradients, and for each scalar the consumer with the largest |w(u, v) g_u|.

Algorithm 1 of the chapter: run backpropagation, then step from a scalar to the consumer u that maximises |w(u, v) g_u|
with the *ordinary* gradient g_u. One walk does both: what the sum has come to at a value is what the winners of its
arguments are chosen by. Gradients are in float64 whatever the model's precision, so that rounding decides nothing but
what is a tie to 16 digits.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import Strided
from ..kernels import native
from ..kernels.gradient import gradient
from ..kernels.maps import turned
from ..kernels.shared_exponent import OutOfRange, Plane
from ..recording.record import Record, Value
from .arrivals import Arrivals
from .best import Best, Strongest, left_by
from .elements import Elements, Reached
from .example_labels import Labels
from .walk import Algebra, Edge, Track

ONE = torch.ones((), dtype=torch.float64)
LEAST = 2.0**-500  # a product of two numbers that are not less than this is one that float64 holds


class Both(NamedTuple):
    """What has come to a value: the sum, the winners, and whether all of it has only been moved, from one result."""

    sum: Reached
    winners: Arrivals
    moved: bool = False


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
        return Both(self._sum.begin(loss), self._strongest.begin(loss))

    def finish(self, value: Value, arrived: Both, *, alone: bool) -> tuple[Reached, Plane]:
        weights = self._strongest.finish(value, arrived.winners, alone=alone)
        if weights.high > 0 and math.ldexp(weights.low, weights.exponent) < LEAST:
            raise OutOfRange
        g = self._sum.finish(value, arrived.sum, alone=False)
        # the weights that winners of arguments are chosen by; of what was moved they are known
        last = value.call is None and arrived.sum.own
        plane = weights if arrived.moved else absolute(g.g[0], last=last, rows=weights.rows)
        if value.id in self.found.planes and self.found.gradients is not None:
            self.found.gradients[value.id] = plane
        return g, plane

    def send(self, edge: Edge, g: tuple[Reached, Plane], known: Both | None) -> Both:
        sums, winners = (None, None) if known is None else known[:2]
        sent = self._sum.send(edge, g[0], sums), self._strongest.send(edge, g[1], winners)
        return Both(*sent, known is None and moves(edge) and len(g[1].data) == self._strongest.batch(edge.argument))


def moves(edge: Edge) -> bool:
    """Tell whether an edge gives each scalar of the argument what one of the result has."""
    structure = edge.structure
    return type(structure) is Strided and turned(structure.layout, structure.x_shape) is not None


def absolute(g: Tensor, *, last: bool = False, rows: Tensor | None = None) -> Plane:
    """Give absolute numbers as a plane.

    Args:
        last: whether nobody reads these again, so that they may be written over.
        rows: as of a plane.

    Raises:
        OutOfRange: some are not finite, or too small.
    """
    if last and g.is_contiguous() and rows is not None:
        some = g.index_select(1, rows)
        found = native.absolute(some)
        data = g.index_copy_(1, rows, some)
    elif last and g.is_contiguous():
        data, found = g, native.absolute(g)
    else:
        data, found = native.scale(ONE.expand(g.shape), g.shape, "given", g)  # |g|·1, and what it spans
    if found.flags or not found.high < math.inf or found.low < LEAST:
        raise OutOfRange
    return Plane(data, 0, found.high, found.low, owned=True, rows=rows)
