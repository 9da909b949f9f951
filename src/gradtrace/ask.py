"""Ask a tape about several semirings in one walk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .engine import reverse
from .kernels import native
from .kernels.plane import OutOfRange
from .kernels.ranked import Largest
from .semiring import Carrier, Element, Semiring
from .semirings import Family
from .semirings.ranked import Strongest
from .semirings.together import Together
from .tape import Call, Record, Value


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
) -> list[dict[int, Tensor]]:
    """Compute g of some values under several semirings at once.

    Args:
        log2: give log2 of the absolute numbers, which may be beyond a float.
        cast: give numbers in each value's dtype; float64 is more than a large model's parameters leave room for.

    Returns:
        for each semiring, by value id, g: of the value's shape, with what one element consists of in front. Values
        from which the loss cannot be reached are missing.
    """
    wanted = {v.id for v in values}
    found = [_largest(record, loss, wanted, k, log2=log2, cast=cast) for k in semirings]
    rest = [k for k, answer in zip(semirings, found, strict=True) if answer is None]
    answers = iter(_walk(record, loss, wanted, gradings(record, loss, rest), log2=log2, cast=cast) if rest else [])
    return [next(answers) if answer is None else answer for answer in found]


def _largest(
    record: Record, loss: Value, wanted: set[int], semiring: Family, *, log2: bool, cast: bool
) -> dict[int, Tensor] | None:
    """Answer for the k strongest paths in a walk of its own, on plain numbers without backpointers.

    None where the question is another one, or float64 is too narrow for the numbers.
    """
    carrier = semiring.carrier if isinstance(semiring, Semiring) else None
    on_cpu = all(given.device.type == "cpu" for call in record.calls[:1] for given in call.inputs)
    if not (isinstance(carrier, Strongest) and on_cpu and native.available()):
        return None
    try:
        return _walk(record, loss, wanted, [Ungraded(Largest(carrier.k))], log2=log2, cast=cast)[0]
    except OutOfRange:
        return None


def _walk(
    record: Record, loss: Value, wanted: set[int], asked: Sequence[Grading], *, log2: bool, cast: bool
) -> list[dict[int, Tensor]]:
    """Walk the tape once for all that is asked."""
    single = asked[0] if len(asked) == 1 else None
    together = Together(tuple(a.carrier for a in asked))
    found: list[dict[int, Tensor]] = [{} for _ in asked]

    def keep(value: Value, g: Element) -> None:
        if value.id in wanted:
            for number, (asking, out) in enumerate(zip(asked, found, strict=True)):
                own = asking.read(g if single is not None else together.part(g, number))
                numbers = (asking.result.log2(own) if log2 else asking.result.plain(own))[0]
                kind = value.dtype if cast else numbers.dtype
                out[value.id] = numbers.to(kind, memory_format=torch.contiguous_format)

    def enter(g: Element, value: Value, consumer: Call | None) -> Element:
        parts = (a.enter(together.part(g, n), value, consumer) for n, a in enumerate(asked))
        return tuple(plane for part in parts for plane in part)

    plain = all(isinstance(a, Ungraded) for a in asked)
    carrier = together if single is None else single.carrier
    reverse(record, loss, carrier, keep, enter=None if plain else enter)
    return found
