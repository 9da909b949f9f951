"""The algebra of best paths, by the compiled kernels: Max with its winners.

The same as `elements` under Max, with what makes it as fast as backpropagation: values of a tensor share one exponent,
winners are kept small, and products towards one argument wait until all of them are known, so that a weight used at
every time step is one product over all steps.
Cotangents arrive at a value in reverse recording order, so of equally strong ones the last to arrive wins.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.structure import Strided
from ..kernels import native
from ..kernels.fast import pull
from ..kernels.maps import turned
from ..kernels.memory import within
from ..kernels.product import Product, multiply
from ..kernels.shared_exponent import OutOfRange, Plane, Pulled, fits, joined
from ..recording.record import Record, Value
from .arrivals import Arrivals
from .backpointers import Borrowed, Use, Winners
from .example_labels import Labels
from .per_example import plane_by_example
from .walk import Algebra, Edge, Track, naming, walk

__all__ = ["Best", "OutOfRange", "best"]


@dataclass(eq=False)
class Best:
    """What a pass leaves behind.

    Attributes:
        planes: by value id, the weights of best paths (batch × shape): of leaves and the loss, or of all values.
        winners: by value id, for all values but the loss.
        seconds: by operator, the time spent on its calls.
        gradients: of greedy paths, by value id, the absolute gradients; `planes` are the weights of the steps from
            there, which tell whether there is one.
    """

    planes: dict[int, Plane] = field(default_factory=dict)
    winners: dict[int, Winners] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: dict[int, Plane] | None = None

    @property
    def weights(self) -> dict[int, Plane]:
        """What a trace from each scalar weighs: the path's weight (best), or the absolute gradient (greedy)."""
        return self.planes if self.gradients is None else self.gradients

    def live(self, value_id: int) -> Tensor | None:
        """Give numbers, batch × shape, that are above 0 where there is a trace; None where the weights themselves are.

        A greedy trace can start from a gradient of 0.
        """
        if self.gradients is None or self.gradients[value_id].data is self.planes[value_id].data:
            return None
        return self.planes[value_id].data


def best(
    record: Record,
    loss: Value,
    labels: Labels | None = None,
    track: Track = iter,
    *,
    wanted: Container[int] | None = (),
    among: Container[int] | None = None,
) -> Best:
    """Find the best path of every scalar.

    Args:
        record, loss, labels, track, among: as for `walk`.
        wanted: ids of values whose weights are kept beside those of leaves and the loss; None: all.

    Raises:
        MissingRule, NotANumber: as `walk`.
        OutOfRange: some tensor's values are too far apart for these kernels.
    """
    algebra = Strongest(record.precision(loss), loss, labels, wanted)
    return left_by(algebra, algebra.found, record, loss, track, among)


def left_by(
    algebra: Algebra[Any, Any], found: Best, record: Record, loss: Value, track: Track, among: Container[int] | None
) -> Best:
    """Walk a tape, and give what the algebra found, in memory that an earlier trace had where it fits."""
    with within(record.room):
        walk(record, loss, algebra, track, found.seconds, among)
    return found


class Strongest(Algebra[Arrivals, Plane]):
    """(max, ×) on planes, with winners.

    Args:
        kind: the precision that suffices where nothing would be lost.
        loss, labels, wanted: as for `best`.
    """

    def __init__(
        self, kind: torch.dtype, loss: Value, labels: Labels | None, wanted: Container[int] | None = ()
    ) -> None:
        self.kind, self.loss, self.labels, self.wanted = kind, loss, labels, wanted
        self.found = Best()
        self.packed: dict[Any, Any] = {}
        self.owners: dict[int, list[tuple[Borrowed, tuple[int, ...]]]] = {}

    def begin(self, loss: Value) -> Arrivals:
        one = Plane(torch.ones((1, *loss.shape), dtype=self.kind), 0, 1.0, 1.0, owned=True)
        return Arrivals(loss, Winners(loss.shape), 1, one)

    def finish(self, value: Value, arrived: Arrivals, *, alone: bool) -> Plane:
        del alone
        found = self._finish(value, arrived)
        return found if found.dtype is self.kind else fits(found, self.kind)

    def send(self, edge: Edge, g: Plane, known: Arrivals | None) -> Arrivals:
        structure, _, result, argument, first = edge
        if self.labels is None:
            part, split = pull(structure, g), False
        else:
            part, split = plane_by_example(structure, g, result, argument, self.labels)
        way = part.plan.way if isinstance(part, Product) else part.way
        return self._arrive(argument, known, Use(first, result, way, split), part)

    def relay(self, edge: Edge, arrived: Arrivals, known: Arrivals | None) -> Arrivals | None:
        """Let a product that has not been computed go through a transposition as it is."""
        structure, value, terms = edge.structure, edge.result, arrived.terms
        if len(terms) != 1 or type(structure) is not Strided or self._keeps(value):
            return None
        if structure.layout.size != value.shape or terms[0].shape != value.shape:
            return None
        found = turned(structure.layout, structure.x_shape)
        if found is None or tuple(value.shape[d] for d in found[0]) != structure.x_shape:
            return None
        order, way, _ = found
        return self._arrive(edge.argument, known, Use(edge.first, value, way), self._through(arrived, order))

    def _through(self, got: Arrivals, order: tuple[int, ...]) -> Product:
        """Turn the product that has arrived; the value that it leaves will borrow the winners of where it goes."""
        product = got.terms[0]
        borrowed = Borrowed(got.value.shape, got.winners.edges)
        self.found.winners[got.value.id] = borrowed
        passed = product.turned(order)
        before = self.owners.pop(id(product), ())
        self.owners[id(passed)] = [(borrowed, order), *((u, _after(o, order)) for u, o in before)]
        return passed

    # ------------------------------------------------------------ arrivals

    def _arrive(self, argument: Value, known: Arrivals | None, edge: Use, part: Pulled | Product) -> Arrivals:
        if known is None:
            known = Arrivals(argument, Winners(argument.shape), self.batch(argument))
        if isinstance(part, Product):
            free = known.plane is None and not known.parts
            if free and (not known.terms or known.terms[0].key == part.key):
                known.terms.append(part)
                known.winners.edges.append(edge)
                return known
        if known.terms:
            self._compute(known)
        known.merge(edge, self._realised(part, edge) if isinstance(part, Product) else part)
        if self.owners:
            self._lend(part, known.winners, len(known.winners.edges) - 1)
        return known

    def _realised(self, product: Product, edge: Use) -> Pulled:
        with naming(edge.target.call):  # it may have waited
            return product.realise(None if product.w is None else self._packed(product.w))

    def _packed(self, w: Tensor) -> Any:
        """Give the packed form of a weight that comes again and again."""
        key = w.data_ptr(), w.shape, w.stride(), w.dtype
        seen = self.packed.get(key)
        if seen is None:
            self.packed[key] = w
            return None
        if isinstance(seen, Tensor):
            seen = self.packed[key] = (w, native.prepare(w))
        return seen[1]

    def _compute(self, known: Arrivals) -> None:
        """Compute the products that have arrived, all in one."""
        terms, winners = known.terms, known.winners
        known.terms = []
        for ordinal, term in enumerate(terms) if self.owners else ():
            self._lend(term, winners, ordinal)
        if len(terms) == 1:
            found = self._realised(terms[0], winners.edges[0])
            known.plane, winners.index = found.plane, found.raw
            known.reshape()
            return
        try:
            self._together(known, terms)
        except (OutOfRange, NotANumber):  # one exponent cannot serve them all, or one is to be named: one by one
            edges, winners.edges = winners.edges, []
            for edge, term in zip(edges, terms, strict=True):
                known.merge(edge, self._realised(term, edge))
            return
        known.reshape()

    def _together(self, known: Arrivals, terms: list[Product]) -> None:
        """Compute several products as one, side by side in the program's order: the last to arrive first."""
        last_first = terms[::-1]
        weights = [t.w for t in last_first if t.w is not None]
        a, sizes = joined([t.a for t in last_first], -1 if weights else -2)
        plane, raw = multiply(a, torch.cat(weights, -1) if weights else None)
        known.plane = terms[0].placed(plane)
        known.winners.index = terms[0].arranged(raw)
        known.winners.terms = _numbered(tuple(sizes))

    def _lend(self, part: object, winners: Winners, ordinal: int) -> None:
        """Let values whose product went on to another borrow that one's winners."""
        for borrowed, order in self.owners.pop(id(part), ()):
            borrowed.borrow(winners, ordinal, order)

    def batch(self, value: Value) -> int:
        """Give how many entries a value's planes have."""
        return self.labels.batch(value) if self.labels is not None else 1

    # ------------------------------------------------------------ leaving

    def _keeps(self, value: Value) -> bool:
        return value.call is None or value is self.loss or self.wanted is None or value.id in self.wanted

    def _finish(self, value: Value, got: Arrivals) -> Plane:
        """Note the winners of a value that has all it will get, and give its weights."""
        if got.terms:
            self._compute(got)
        got.complete()
        assert got.plane is not None
        if value is not self.loss:
            self.found.winners[value.id] = got.winners
        if self._keeps(value):
            self.found.planes[value.id] = got.plane
        return got.plane


@lru_cache(maxsize=256)
def _numbered(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Give for products of these sizes, the last one first: (each scalar's product, its number there)."""
    # by numpy, which does this in a hundredth of the time
    ordinals = np.repeat(np.arange(len(sizes))[::-1], sizes)
    return torch.from_numpy(ordinals), torch.from_numpy(np.concatenate([np.arange(n) for n in sizes]))


def _after(first: tuple[int, ...], then: tuple[int, ...]) -> tuple[int, ...]:
    """Compose two orders of axes."""
    return tuple(first[d] for d in then)
