"""The semirings of a scalar graph: the family's, exact ones for exact weights, and two whose weights are lengths.

`MaxPlus` and `MinPlus` add weights along a path instead of multiplying them: the longest path, and the shortest. They
are for graphs only: an edge of weight 0 is an edge of length 0, and a view, whose derivative is 1, would lengthen every
path by 1. So λ(1) is not the one of ⊗, and `gradtrace.semirings.make` refuses them. What it takes instead is
the (max, +) semiring of logarithms, λ(w) = log |w|, which is Max in other clothes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadArgument, UnknownName
from ..semirings import AbsSum, Count, Family, Max, Semiring, Sum, named
from ..semirings.base import itself
from .graph import BadGraph, Number, Outgoing, has_symbols, is_exact


@dataclass(frozen=True)
class Lengths:
    """A semiring on plain numbers whose ⊗ is +: weights are lengths, of which an edge may have 0."""

    name: str
    zero: Number
    plus: Callable[[Number, Number], Number]
    one: Number = 0
    times: Callable[[Number, Number], Number] = operator.add
    lift: Callable[[Number], Number] = itself
    plain: Callable[[Number], Number] = itself


MaxPlus = Lengths("max-plus", -math.inf, max)
"""(max, +): g_v is the length of the longest path from v, -inf where there is none."""

MinPlus = Lengths("min-plus", math.inf, min)
"""(min, +): g_v is the length of the shortest path from v, inf where there is none."""

Arithmetic = Semiring | Lengths
BY_NAME = {k.name: k for k in (MaxPlus, MinPlus)}
EXACT: dict[str, Callable[[Any], Any]] = {
    Sum.name: itself,
    AbsSum.name: abs,
    Max.name: abs,
    Count.name: lambda weight: int(weight != 0),
}


def of_numbers(semiring: Arithmetic | str) -> Arithmetic:
    """Give a semiring itself, or the one of that name.

    Raises:
        UnknownName: there is none, or it tells components apart, which only `backpropagate` and `steps` do.
    """
    found = of_graphs(semiring)
    if isinstance(found, (Semiring, Lengths)):
        return found
    raise UnknownName(f"{found.name!r} tells components apart: only backpropagate and steps do, name another semiring")


def of_graphs(semiring: Family | Lengths | str) -> Family | Lengths:
    """Give what a graph can be asked, or what has that name."""
    if isinstance(semiring, Lengths):
        return semiring
    if isinstance(semiring, str) and semiring in BY_NAME:
        return BY_NAME[semiring]
    try:
        return named(semiring)
    except UnknownName as error:
        raise UnknownName(f"{error.said}; of lengths, {' or '.join(BY_NAME)}") from None


def fitting(k: Arithmetic, outgoing: Outgoing) -> Arithmetic:
    """Give a semiring for the numbers of a graph: Sum, AbsSum, Max and Count are exact where all weights are.

    Raises:
        BadGraph: of another semiring, where weights are symbols.
    """
    if isinstance(k, Lengths) or not is_exact(outgoing):
        return k
    if EXACT.get(k.name) and k in (Sum, AbsSum, Max, Count):
        return replace(k, zero=0, one=1, plus=_compared if k is Max else k.plus, lift=EXACT[k.name])
    if has_symbols(outgoing):
        raise BadGraph(f"{k.name} takes numbers, and some weights are symbols: substitute numbers, or ask sum or count")
    return replace(k, lift=lambda weight: k.lift(float(weight)))


def _compared(a: Number, b: Number) -> Number:
    try:
        return max(a, b)
    except TypeError:
        raise BadArgument(f"which of {a} and {b} is larger depends on their symbols: substitute numbers") from None
