"""The reverse pass of best paths, by the compiled kernels: Max with its winners, and nothing else.

The same walk as `engine.reverse` under Max, with what makes it as fast as backpropagation: values of a tensor share one
exponent, winners are kept small, and products towards one argument wait until all of them are known, so that a
weight used at every time step is one product over all steps.
Cotangents arrive at a value in reverse recording order, so of equally strong ones the last to arrive wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from . import rules
from .engine import EDGE_BITS, Edges, offsets
from .errors import MissingRule, NotANumber
from .kernels import native
from .kernels.fast import TINY, OutOfRange, Plane, Product, Pulled, fits, multiply, pull, turned
from .kernels.reference import window
from .labels import Labels
from .split import plane_by_example
from .storage import disjoint
from .structure import Layout, Strided
from .tape import Call, Record, Value
from .winners import Edge, Unused, Winners

__all__ = ["Best", "OutOfRange", "best"]


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


@dataclass(eq=False, slots=True)
class Arrivals:
    """What has arrived at one value so far.

    Attributes:
        terms: products that have not been computed, of one key; nothing else has arrived while there are any.
        covered: the windows that have arrived, where only windows have and no two overlap.
    """

    value: Value
    winners: Winners
    plane: Plane | None = None
    terms: list[Product] = field(default_factory=list)
    covered: list[Layout] | None = None


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
        record, loss, labels, track: as for `engine.reverse`.
        everything: keep the weights of all values, not of leaves only.

    Raises:
        MissingRule, NotANumber: as `engine.reverse`.
        OutOfRange: some tensor's values are too far apart for these kernels.
    """
    return _Pass(record, loss, labels, everything).run(track)


class _Pass:
    def __init__(self, record: Record, loss: Value, labels: Labels | None, everything: bool) -> None:
        self.record, self.loss, self.labels, self.everything = record, loss, labels, everything
        self.kind = _precision(record, loss)
        self.edges = Edges.of(record)
        self.found = Best()
        self.pending: dict[int, Arrivals] = {}
        self.packed: dict[Any, Any] = {}
        self.owners: dict[int, list[tuple[Unused, tuple[int, ...]]]] = {}
        self.uses = _uses(record, loss)

    def run(self, track: Callable[[list[Call]], Iterable[Call]]) -> Best:
        one = Plane(torch.ones((1, *self.loss.shape), dtype=self.kind), 0, 1.0, 1.0, owned=True)
        self.pending[self.loss.id] = Arrivals(self.loss, Winners(self.loss.shape), one)
        seconds = self.found.seconds
        for call in track(self.record.calls[::-1]):
            arrived = [self.pending.pop(v.id, None) if v is not None else None for v in call.outputs]
            if not any(arrived):
                continue
            began = perf_counter()
            try:
                self._call(call, arrived)
            except NotANumber as error:
                raise NotANumber(f"{error}: {call.where}") from None
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
            edges.sort(key=_position, reverse=True)
        for position, output, structure in edges:
            covered.add(output)
            argument, got = call.inputs[position].value, arrived[output] if output < len(arrived) else None
            if got is None or argument is None or not argument.differentiable:
                continue
            first = (self.edges.first[call.index] + position << EDGE_BITS) + starts[output]
            passed = self._passed(structure, got)
            if passed is not None:
                product, way = passed
                self._arrive(argument, Edge(first, got.value, way), product)
                continue
            g = planes[output]
            if g is None:
                g = planes[output] = fits(self._finish(got), self.kind)
            part, split = self._pulled(structure, g, got.value, argument)
            way = part.plan.way if isinstance(part, Product) else part.way
            self._arrive(argument, Edge(first, got.value, way, split), part)
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
        product, (order, way) = got.terms[0], found
        unused = Unused(got.value.shape, got.winners.edges)
        self.found.winners[got.value.id] = unused
        passed = product.turned(order)
        self.owners[id(passed)] = [
            (unused, order),
            *((u, _after(o, order)) for u, o in self.owners.pop(id(product), ())),
        ]
        return passed, way

    def _pulled(self, structure: Any, g: Plane, y: Value, x: Value) -> tuple[Pulled | Product, bool]:
        if self.labels is None:
            return pull(structure, g), False
        return plane_by_example(structure, g, y, x, self.labels)

    # ------------------------------------------------------------ arrivals

    def _arrive(self, argument: Value, edge: Edge, part: Pulled | Product) -> None:
        known = self.pending.get(argument.id)
        if known is None:
            known = self.pending[argument.id] = Arrivals(argument, Winners(argument.shape))
        if isinstance(part, Product) and known.plane is None and (not known.terms or known.terms[0].key == part.key):
            known.terms.append(part)
            known.winners.edges.append(edge)
        else:
            self._compute(known)
            self._merge(known, edge, self._realised(part) if isinstance(part, Product) else part)
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
        if not terms:
            return
        known.terms = []
        for ordinal, term in enumerate(terms):
            self._lend(term, winners, ordinal)
        if len(terms) == 1:
            found = self._realised(terms[0])
            known.plane, winners.index = found.plane, found.raw
            self._reshape(known)
            return
        # the program's order: the last to arrive first
        order = list(range(len(terms)))[::-1]
        weights = [w for i in order if (w := terms[i].w) is not None]
        a, sizes = _joined([terms[i].a for i in order], -1 if weights else -2)
        plane, raw = multiply(a, torch.cat(weights, -1) if weights else None)
        known.plane = terms[0].placed(plane)
        winners.index = terms[0].arranged(raw)
        ordinal = torch.repeat_interleave(torch.tensor(order), torch.tensor(sizes))
        winners.terms = ordinal, torch.cat([torch.arange(n) for n in sizes])
        self._reshape(known)

    def _lend(self, part: object, winners: Winners, ordinal: int) -> None:
        """Let values whose product went on to another borrow that one's winners."""
        for unused, order in self.owners.pop(id(part), ()):
            unused.borrow(winners, ordinal, order)

    def _reshape(self, known: Arrivals) -> None:
        """See what a product gave, in the shape of its structure, in the value's."""
        plane, index, shape = known.plane, known.winners.index, known.value.shape
        assert plane is not None
        assert index is not None
        if plane.data.shape[1:] != shape:
            plane.data = plane.data.reshape(len(plane.data), *shape)
            known.winners.index = index.reshape(len(index), *shape)

    def _merge(self, known: Arrivals, edge: Edge, part: Pulled) -> None:
        winners = known.winners
        winners.edges.append(edge)
        batch = self._batch(known.value)
        plane = part.plane
        if part.window is None:
            shape, raw = (batch, *known.value.shape), part.raw
            if plane.shape != shape:
                rows = plane.shape[0]
                data = plane.data.reshape(rows, *known.value.shape).expand(shape)
                raw = None if raw is None else raw.reshape(raw.shape[0], *known.value.shape).expand(shape)
                plane = Plane(data, plane.exponent, plane.high, plane.low, plane.owned and rows == batch)
            if known.plane is None:
                known.plane, winners.index = plane, raw
                return
        else:
            if known.plane is None or (known.covered is not None and _apart(known.covered, part.window)):
                self._paste(known, part)
                return
            plane, raw = _whole(known.value, batch, part)
        if known.covered is not None:
            known.winners.settle()
            known.covered = None
        _strongest(known, plane, raw)

    def _batch(self, value: Value) -> int:
        return 1 if self.labels is None or not self.labels.free(value) else self.labels.count

    def _paste(self, known: Arrivals, part: Pulled) -> None:
        """Write a window where nothing has arrived yet."""
        assert part.window is not None
        winners, plane, batch = known.winners, part.plane, self._batch(known.value)
        if known.plane is None:
            data = torch.zeros((batch, *known.value.shape), dtype=plane.data.dtype)
            known.plane, known.covered = Plane(data, plane.exponent, plane.high, plane.low, owned=True), []
        assert known.covered is not None
        old = known.plane
        if old.exponent == plane.exponent and old.data.dtype is plane.data.dtype:
            window(old.data.view(batch, -1), part.window).copy_(plane.data)
            old.high, old.low = max(old.high, plane.high), min(old.low, plane.low)
        else:
            self._paste_scaled(known, part)
        known.covered.append(part.window)
        if len(winners.edges) > 1:
            winners.windows = known.covered
        if part.raw is not None:
            if winners.index is None:
                winners.index = torch.zeros((batch, *known.value.shape), dtype=torch.int32)
            window(winners.index.view(batch, -1), part.window).copy_(part.raw)

    def _paste_scaled(self, known: Arrivals, part: Pulled) -> None:
        """Write a window that is in another unit."""
        old, plane = known.plane, part.plane
        assert old is not None
        assert part.window is not None
        factor, other, exponent, double = aligned(old, plane)
        data = old.data.to(torch.float64) if double else old.data
        if factor != 1:
            data.mul_(factor)
        window(data.view(len(data), -1), part.window).copy_(plane.data * other)
        high, low = max(old.high * factor, plane.high * other), min(old.low * factor, plane.low * other)
        known.plane = Plane(data, exponent, high, low, owned=True)

    # ------------------------------------------------------------ leaving

    def _finish(self, got: Arrivals) -> Plane:
        """Note the winners of a value that has all it will get, and give its weights."""
        self._compute(got)
        assert got.plane is not None
        if got.value is not self.loss:
            self.found.winners[got.value.id] = got.winners
        if self.everything or got.value.call is None or got.value is self.loss:
            self.found.planes[got.value.id] = got.plane
        return got.plane


def _after(first: tuple[int, ...], then: tuple[int, ...]) -> tuple[int, ...]:
    """Compose two orders of axes."""
    return tuple(first[d] for d in then)


def _position(edge: rules.Edge) -> tuple[int, int]:
    return edge[0], edge[1]


def _precision(record: Record, loss: Value) -> torch.dtype:
    """Give float64 where the program has a leaf of it, also for what it casts down in between; else float32."""
    double = any(v.dtype is torch.float64 for v in (loss, *record.leaves.values()))
    return torch.float64 if double else torch.float32


def _uses(record: Record, loss: Value) -> dict[int, int]:
    """Count how often each leaf will be arrived at."""
    out: dict[int, int] = {}
    for call in record.calls:
        for given in call.inputs:
            if given.value is not None and given.value.call is None:
                out[given.value.id] = out.get(given.value.id, 0) + 1
    return out


def _joined(parts: list[Plane], dim: int) -> tuple[Plane, list[int]]:
    """Put the values of several products side by side, in one unit: (all of them, the size of each)."""
    exponent = max((p.exponent + (math.frexp(p.high)[1] if p.high > 0 else 0) for p in parts))
    factors = [2.0 ** max(-2000, p.exponent - exponent) if p.high else 1.0 for p in parts]
    low = min(p.low * f for p, f in zip(parts, factors, strict=True))
    kind = torch.float64 if any(p.data.dtype is torch.float64 for p in parts) else torch.float32
    if low < TINY[kind] * 2.0**30:
        kind = torch.float64
    if low < TINY[kind]:
        raise OutOfRange
    scaled = [p.data.to(kind) if f == 1 else p.data.to(kind) * f for p, f in zip(parts, factors, strict=True)]
    high = max(p.high * f for p, f in zip(parts, factors, strict=True))
    return Plane(torch.cat(scaled, dim), exponent, high, low, owned=True), [p.data.shape[dim] for p in parts]


def aligned(a: Plane, b: Plane) -> tuple[float, float, int, bool]:
    """Bring two planes to one exponent: (factor of a, factor of b, exponent, whether it takes float64).

    Raises:
        OutOfRange: not even float64 holds both.
    """
    double = a.data.dtype is torch.float64 or b.data.dtype is torch.float64
    if a.exponent == b.exponent or b.high == 0:
        return 1.0, 1.0, a.exponent, double
    if a.high == 0:
        return 1.0, 1.0, b.exponent, double
    of_a, of_b = a.exponent + math.frexp(a.high)[1], b.exponent + math.frexp(b.high)[1]
    exponent = a.exponent if of_a >= of_b else b.exponent
    if max(abs(a.exponent - exponent), abs(b.exponent - exponent)) > 1000:
        raise OutOfRange
    fa, fb = 2.0 ** (a.exponent - exponent), 2.0 ** (b.exponent - exponent)
    low = min(a.low * fa, b.low * fb)
    if low < TINY[torch.float64]:
        raise OutOfRange
    return fa, fb, exponent, double or low < TINY[torch.float32] or max(a.high * fa, b.high * fb) > 2.0**100


def _apart(covered: list[Layout], new: Layout) -> bool:
    return all(disjoint(old, new) for old in covered)


def _whole(value: Value, batch: int, part: Pulled) -> tuple[Plane, Tensor | None]:
    """Give a window's values and winners the shape of the value."""
    assert part.window is not None
    data = torch.zeros((batch, *value.shape), dtype=part.plane.data.dtype)
    window(data.reshape(batch, -1), part.window).copy_(part.plane.data)
    plane = Plane(data, part.plane.exponent, part.plane.high, part.plane.low, owned=True)
    if part.raw is None:
        return plane, None
    raw = torch.full(data.shape, -1, dtype=torch.int32)
    window(raw.reshape(batch, -1), part.window).copy_(part.raw)
    return plane, raw


def _chosen(winners: Winners, shape: torch.Size, mark: int) -> None:
    """Make room for choices, wide enough for this one."""
    if winners.choice is None:
        winners.choice = torch.zeros(shape, dtype=torch.uint8)
    if mark == 256:
        winners.choice = winners.choice.to(torch.int32)


def _strongest(known: Arrivals, new: Plane, raw: Tensor | None) -> None:
    """Keep the stronger of what was there and what has arrived, scalar by scalar."""
    old, winners = known.plane, known.winners
    assert old is not None
    winners.edges, last = winners.edges[:-1], winners.edges[-1]
    winners.settle()
    winners.edges.append(last)
    fa, fb, exponent, double = aligned(old, new)
    kind = torch.float64 if double else torch.float32
    a, b = _mine(old, kind), new.data.to(kind).contiguous()
    mark = len(winners.edges) - 1
    _chosen(winners, a.shape, mark)
    indices = None
    if raw is not None or winners.index is not None:
        mine = torch.zeros(a.shape, dtype=torch.int32) if winners.index is None else _own(winners.index)
        winners.index = mine
        indices = None if raw is None else (mine, raw.contiguous())
    native.merge(a, fa, b, fb, indices, winners.choice, mark)
    known.plane = Plane(a, exponent, max(old.high * fa, new.high * fb), min(old.low * fa, new.low * fb), owned=True)


def _mine(plane: Plane, kind: torch.dtype) -> Tensor:
    """Give data that may be written to."""
    data = plane.data.to(kind).contiguous()
    return data if plane.owned or data is not plane.data else data.clone()


def _own(index: Tensor) -> Tensor:
    # winners of one value are nobody else's, but an expanded or transposed plane has to be laid out anew
    return index if index.is_contiguous() else index.contiguous()
