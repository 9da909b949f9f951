"""Ask a tape about several semirings in one walk."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.counting import COUNTING
from ..kernels.float_carriers import Plain, PlainEntropy, PlainNorm
from ..kernels.gradient import Gradient, gradient
from ..kernels.lanes import lanes
from ..kernels.shared_exponent import OutOfRange
from ..kernels.signed import Ends
from ..kernels.top_k import Largest
from ..recording.record import Call, Record, Value
from ..semirings import Family
from ..semirings.base import AbsSum, Carrier, Count, Element, Max, Semiring, Sum
from ..semirings.entropy import Spread
from ..semirings.exponents import shifted
from ..semirings.graded import WIDE
from ..semirings.power import Norm
from ..semirings.ranked import Extremes, Strongest
from ..semirings.states import States
from ..semirings.together import Together
from .best import best
from .elements import reverse

PLAIN = {wide: {s.name: s for s in (Sum, AbsSum)}[name].carrier for name, wide in WIDE.items()}
POWERS = [2.0**s for s in range(7)]  # that the compiled kernels know


class Grading(Protocol):
    """What tells apart where paths went: see `semirings.graded`."""

    @property
    def carrier(self) -> Carrier:
        """The arrays that the pass works on."""
        ...

    @property
    def result(self) -> Carrier:
        """The arrays that `read` gives."""
        ...

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Say what the elements that reach a value from a consumer become there."""
        ...

    def read(self, g: Element) -> Element:
        """Give the answer from a finished value's elements."""
        ...


@dataclass(frozen=True)
class Ungraded:
    """A semiring by itself: where a path goes makes no difference."""

    carrier: Carrier

    @property
    def result(self) -> Carrier:
        """The same arrays."""
        return self.carrier

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Leave it as it is."""
        del value, consumer
        return g

    def read(self, g: Element) -> Element:
        """Leave it as it is."""
        return g


def gradings(record: Record, loss: Value, semirings: Iterable[Family]) -> list[Grading]:
    """Set semirings up for one tape."""
    return [Ungraded(k.carrier) if isinstance(k, Semiring) else k.on(record, loss) for k in semirings]


def ask(
    record: Record,
    loss: Value,
    values: Iterable[Value],
    semirings: Sequence[Family],
    *,
    log2: bool = False,
    cast: bool = False,
    among: Container[int] | None = None,
) -> list[dict[int, Tensor]]:
    """Compute g of some values under several semirings at once.

    Powers, entropies and the k largest are computed on plain numbers first, which is much faster; where those are too
    narrow the pass runs again with an exponent for each number.

    Args:
        log2: give log2 of the absolute numbers, which may be beyond a float.
        cast: give numbers in each value's dtype; float64 is more than a large model's parameters leave room for.
        among: ids of values, beside which none is looked at: these, and all that they lead to. None: all.

    Returns:
        for each semiring, by value id, g: of the value's shape, with what one element consists of in front. Values
        from which the loss cannot be reached are missing.
    """
    values = list(values)
    wanted = {v.id for v in values}
    asked = gradings(record, loss, semirings)
    swift = quick(record, loss, asked, log2=log2)
    strongest = [n for n, a in enumerate(swift) if native.available() and a.carrier is Max.carrier]
    # norms share a walk, and so do carriers of the reference; what has kernels of its own would round otherwise in
    # company, and elements of the k largest are as long as some scalar has paths: they walk by themselves
    plain = [n for n, a in enumerate(swift) if isinstance(a.carrier, Plain)]
    own = [n for n, a in enumerate(swift) if a.carrier is not asked[n].carrier and n not in plain]
    walks = [[n] for n in (*strongest, *own)]
    walks += [plain, [n for n in range(len(asked)) if n not in (*strongest, *own, *plain)]]
    found: list[dict[int, Tensor]] = [{} for _ in asked]
    for numbers in filter(None, walks):
        try:
            if numbers[0] in strongest:
                found[numbers[0]] = _strongest(record, loss, values, among, log2=log2, cast=cast)
                continue
            answers = _walk(record, loss, wanted, [swift[n] for n in numbers], among, log2=log2, cast=cast)
        except OutOfRange:
            answers = _walk(record, loss, wanted, [asked[n] for n in numbers], among, log2=log2, cast=cast)
        for n, answer in zip(numbers, answers, strict=True):
            found[n] = answer
    return found


def _strongest(
    record: Record, loss: Value, values: Iterable[Value], among: Container[int] | None, *, log2: bool, cast: bool
) -> dict[int, Tensor]:
    """Compute g of some values under Max, by the compiled kernels, as best paths are found."""
    planes = best(record, loss, wanted={v.id for v in values}, among=among).planes
    found = {}
    for value in values:
        if value.id in planes:
            data, exponent = planes[value.id].data[0].to(torch.float64), planes[value.id].exponent
            numbers = data.log2() + exponent if log2 else shifted(data, torch.tensor(exponent))
            found[value.id] = _dense(numbers.to(value.dtype) if cast else numbers)
    return found


def quick(record: Record, loss: Value, asked: Sequence[Grading], *, log2: bool = False) -> list[Grading]:
    """Put carriers of plain numbers in the places of those that are slower: of exponents, of backpointers, of float64.

    Under `log2` gradients stay as they are, since those of the model's precision underflow as autograd's do.
    """
    if not native.available():
        return list(asked)
    kind = record.precision(loss)
    slow = (Sum.carrier,) if log2 else ()
    return [
        Ungraded(_plain(a.carrier, kind))
        if isinstance(a, Ungraded) and a.carrier not in slow
        else _lanes(a, kind, log2)
        for a in asked
    ]


def _lanes(grading: Grading, kind: torch.dtype, log2: bool) -> Grading:
    """Give a grading's states plain numbers, if there are any for what they split."""
    states = grading.carrier
    if not isinstance(states, States):
        return grading
    base = _plain(PLAIN.get(states.base, states.base), kind)
    if not isinstance(base, (Gradient, PlainNorm)) or (log2 and isinstance(base, Gradient)):
        return grading
    return replace(grading, carrier=lanes(states, base))  # type: ignore[type-var]


def _plain(carrier: Carrier, kind: torch.dtype) -> Carrier:
    if carrier == Sum.carrier:
        return gradient(kind)
    if carrier == Count.carrier:
        return COUNTING
    if isinstance(carrier, Strongest):
        return Largest(kind, carrier.k)
    if isinstance(carrier, Extremes):
        return Ends(kind)
    p = 1.0 if carrier is AbsSum.carrier else carrier.p if isinstance(carrier, Norm) else None
    if p in POWERS:
        return PlainNorm(kind, POWERS.index(p))
    return PlainEntropy(kind) if isinstance(carrier, Spread) else carrier


def _walk(
    record: Record,
    loss: Value,
    wanted: set[int],
    asked: Sequence[Grading],
    among: Container[int] | None = None,
    *,
    log2: bool,
    cast: bool,
) -> list[dict[int, Tensor]]:
    """Walk the tape once for all that is asked."""
    single = asked[0] if len(asked) == 1 else None
    together = Together(tuple(a.carrier for a in asked))
    found: list[dict[int, Tensor]] = [{} for _ in asked]

    def keep(value: Value, g: Element) -> None:
        for number, (asking, out) in enumerate(zip(asked, found, strict=True)):
            own = asking.read(g if single is not None else together.part(g, number))
            numbers = (asking.result.log2(own) if log2 else asking.result.plain(own))[0]
            out[value.id] = _dense(numbers.to(value.dtype) if cast else numbers)

    def enter(g: Element, value: Value, consumer: Call | None) -> Element:
        parts = (a.enter(together.part(g, n), value, consumer) for n, a in enumerate(asked))
        return tuple(plane for part in parts for plane in part)

    plain = all(isinstance(a, Ungraded) for a in asked)
    carrier = together if single is None else single.carrier
    reverse(record, loss, carrier, keep, enter=None if plain else enter, wanted=wanted, among=among)
    return found


def _dense(numbers: Tensor) -> Tensor:
    """Give numbers without gaps or repetitions in memory, their axes in any order, as autograd's gradients are."""
    return numbers if torch.ops.aten.is_non_overlapping_and_dense(numbers) else numbers.contiguous()
