"""The reverse pass of best paths, by the compiled kernels: Max with its winners, and nothing else.

The same walk as `walk.reverse` under Max, with what makes it as fast as backpropagation: values of a tensor share one
exponent, winners are kept small, and products towards one argument wait until all of them are known, so that a
weight used at every time step is one product over all steps.
Cotangents arrive at a value in reverse recording order, so of equally strong ones the last to arrive wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingRule, NotANumber
from ..jacobians import rules
from ..jacobians.structure import Strided
from ..kernels import native
from ..kernels.fast import pull
from ..kernels.maps import turned
from ..kernels.memory import within
from ..kernels.product import Product, multiply
from ..kernels.shared_exponent import OutOfRange, Plane, Pulled, fits, joined
from ..recording.isolation import uncollected
from ..recording.record import Call, Record, Value
from .arrivals import Arrivals
from .backpointers import Borrowed, Use, Winners
from .example_labels import Labels
from .per_example import plane_by_example
from .walk import EDGE_BITS, Edges, offsets

__all__ = ["Best", "OutOfRange", "best"]

_POSITION = itemgetter(0, 1)  # of an edge: its argument, its result


@dataclass(eq=False)
class Best:
    """What a pass leaves behind.

    Attributes:
        planes: by value id, the weights of best paths (batch × shape): of leaves and the loss, or of all values.
        winners: by value id, for all values but the loss.
        seconds: by operator, the time spent on its calls.
    """

    planes: dict[int, Plane] = field(default_factory=dict)
    winners: dict[int, Winners] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def best(
    record: Record,
    loss: Value,
    labels: Labels | None = None,
    track: Callable[[list[Call]], Iterable[Call]] = iter,
    *,
    everything: bool = False,
) -> Best:
    """Find the best path of every scalar.

    Args:
        record, loss, labels, track: as for `walk.reverse`.
        everything: keep the weights of all values, not of leaves only.

    Raises:
        MissingRule, NotANumber: as `walk.reverse`.
        OutOfRange: some tensor's values are too far apart for these kernels.
    """
    with uncollected(), within(record.room):
        return _Pass(record, loss, labels, everything).run(track)


class _Pass:
    def __init__(self, record: Record, loss: Value, labels: Labels | None, everything: bool) -> None:
        self.record, self.loss, self.labels, self.everything = record, loss, labels, everything
        self.kind = record.precision(loss)
        self.edges = Edges.of(record)
        self.found = Best()
        self.pending: dict[int, Arrivals] = {}
        self.packed: dict[Any, Any] = {}
        self.owners: dict[int, list[tuple[Borrowed, tuple[int, ...]]]] = {}
        self.uses = _uses(record)

    def run(self, track: Callable[[list[Call]], Iterable[Call]]) -> Best:
        one = Plane(torch.ones((1, *self.loss.shape), dtype=self.kind), 0, 1.0, 1.0, owned=True)
        self.pending[self.loss.id] = Arrivals(self.loss, Winners(self.loss.shape), 1, one)
        seconds = self.found.seconds
        for call in track(self.record.calls[::-1]):
            arrived = [self.pending.pop(v.id, None) if v is not None else None for v in call.outputs]
            if not any(arrived):
                continue
            began = perf_counter()
            try:
                self._call(call, arrived)
            except NotANumber as error:
                raise NotANumber(f"{error.said}: {call.where}") from None
            seconds[call.name] = seconds.get(call.name, 0.0) + perf_counter() - began
        for left in list(self.pending.values()):
            self._finish(left)
        return self.found

    def _call(self, call: Call, arrived: list[Arrivals | None]) -> None:
        """Carry what has arrived at one call's results to its arguments, the last argument first."""
        starts = offsets(call) if len(arrived) > 1 else (0,)
        planes: list[Plane | None] = [None] * len(arrived)
        covered = set()
        edges = rules.structures(call)
        if len(edges) > 1:
            edges.sort(key=_POSITION, reverse=True)
        for position, output, structure in edges:
            covered.add(output)
            argument, got = call.inputs[position].value, arrived[output] if output < len(arrived) else None
            if got is None or argument is None or not argument.differentiable:
                continue
            first = (self.edges.first[call.index] + position << EDGE_BITS) + starts[output]
            passed = self._passed(structure, got) if got.terms else None
            if passed is not None:
                product, way = passed
                self._arrive(argument, Use(first, got.value, way), product)
                continue
            g = planes[output]
            if g is None:
                g = planes[output] = fits(self._finish(got), self.kind)
            part, split = self._pulled(structure, g, got.value, argument)
            way = part.plan.way if isinstance(part, Product) else part.way
            self._arrive(argument, Use(first, got.value, way, split), part)
        if len(planes) > 1 or planes[0] is None:
            self._leave(call, arrived, planes, covered)

    def _leave(self, call: Call, arrived: list[Arrivals | None], planes: list[Plane | None], covered: set[int]) -> None:
        """Finish the results that no edge asked for, and see that the rule has said something about each."""
        for output, got in enumerate(arrived):
            if got is not None and planes[output] is None and got.value.id not in self.found.winners:
                self._finish(got)
        missing = [i for i, got in enumerate(arrived) if got is not None and i not in covered]
        if missing and any(i.value is not None and i.value.differentiable for i in call.inputs):
            raise MissingRule(f"the rule of {call.where} says nothing about its result number {missing[0]}")

    def _passed(self, structure: object, got: Arrivals) -> tuple[Product, Any] | None:
        """Let a product that has not been computed go through a transposition as it is."""
        whole = type(structure) is Strided and structure.layout.size == got.value.shape
        if len(got.terms) != 1 or not whole or self.everything or got.terms[0].shape != got.value.shape:
            return None
        assert isinstance(structure, Strided)
        found = turned(structure.layout, structure.x_shape)
        if found is None or tuple(got.value.shape[d] for d in found[0]) != structure.x_shape:
            return None
        order, way = found
        return self._through(got, order), way

    def _through(self, got: Arrivals, order: tuple[int, ...]) -> Product:
        """Turn the product that has arrived; the value that it leaves will borrow the winners of where it goes."""
        product = got.terms[0]
        borrowed = Borrowed(got.value.shape, got.winners.edges)
        self.found.winners[got.value.id] = borrowed
        passed = product.turned(order)
        before = self.owners.pop(id(product), ())
        self.owners[id(passed)] = [(borrowed, order), *((u, _after(o, order)) for u, o in before)]
        return passed

    def _pulled(self, structure: Any, g: Plane, y: Value, x: Value) -> tuple[Pulled | Product, bool]:
        if self.labels is None:
            return pull(structure, g), False
        return plane_by_example(structure, g, y, x, self.labels)

    # ------------------------------------------------------------ arrivals

    def _arrive(self, argument: Value, edge: Use, part: Pulled | Product) -> None:
        known = self.pending.get(argument.id)
        if known is None:
            known = self.pending[argument.id] = Arrivals(argument, Winners(argument.shape), self._batch(argument))
        free = known.plane is None and not known.parts
        if free and isinstance(part, Product) and (not known.terms or known.terms[0].key == part.key):
            known.terms.append(part)
            known.winners.edges.append(edge)
        else:
            if known.terms:
                self._compute(known)
            pulled = self._realised(part) if isinstance(part, Product) else part
            known.merge(edge, pulled)
            if self.owners:
                self._lend(part, known.winners, len(known.winners.edges) - 1)
        left = self.uses.get(argument.id)
        if left is not None:
            self.uses[argument.id] = left - 1
            if left == 1 and known.terms:
                self._compute(known)

    def _realised(self, product: Product) -> Pulled:
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
            found = self._realised(terms[0])
            known.plane, winners.index = found.plane, found.raw
            known.reshape()
            return
        self._together(known, terms)
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

    def _batch(self, value: Value) -> int:
        return self.labels.batch(value) if self.labels is not None else 1

    # ------------------------------------------------------------ leaving

    def _finish(self, got: Arrivals) -> Plane:
        """Note the winners of a value that has all it will get, and give its weights."""
        if got.terms:
            self._compute(got)
        got.complete()
        assert got.plane is not None
        if got.value is not self.loss:
            self.found.winners[got.value.id] = got.winners
        if self.everything or got.value.call is None or got.value is self.loss:
            self.found.planes[got.value.id] = got.plane
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


def _uses(record: Record) -> dict[int, int]:
    """Count how often each leaf will be arrived at."""
    out: dict[int, int] = {}
    for call in record.calls:
        for given in call.inputs:
            if given.value is not None and given.value.call is None:
                out[given.value.id] = out.get(given.value.id, 0) + 1
    return out
