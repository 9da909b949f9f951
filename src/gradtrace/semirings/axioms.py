"""The axioms that a semiring has to satisfy for backpropagation under it to mean something, checked on samples.

With them g_v is ⊕ over all paths of ⊗ along each path, whatever the order in which a kernel merges; without them it is
just a number. Two are about the lift: views multiply by no weight at all, so λ(1) has to be one; and a
structure of low rank multiplies by its factors one after the other, so λ has to be multiplicative.
Samples can refute an axiom, never prove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from ..errors import GradtraceError
from .base import Semiring

SAMPLES = (0.0, 1.0, -1.0, 2.0, 2.0, -3.0, 0.5, -0.25)


class BrokenAxiom(GradtraceError):
    """A semiring that isn't one; the message names the axiom and the numbers on which it fails."""


Sides = Callable[..., tuple[Any, Any]]  # of an axiom: what should be equal


@dataclass(frozen=True)
class Axiom:
    """An equation between elements a, b, c; `number` where they are edge weights instead."""

    name: str
    arity: int
    sides: Sides
    number: bool = False


AXIOMS = (
    Axiom("zero is neutral: a ⊕ 0 = a", 1, lambda k, a: (k.plus(a, k.zero), a)),
    Axiom("one is neutral: a ⊗ 1 = a", 1, lambda k, a: (k.times(a, k.one), a)),
    Axiom("zero annihilates: a ⊗ 0 = 0", 1, lambda k, a: (k.times(a, k.zero), k.zero)),
    Axiom("⊕ is commutative: a ⊕ b = b ⊕ a", 2, lambda k, a, b: (k.plus(a, b), k.plus(b, a))),
    Axiom("⊗ is commutative: a ⊗ b = b ⊗ a", 2, lambda k, a, b: (k.times(a, b), k.times(b, a))),
    Axiom(
        "⊕ is associative: (a ⊕ b) ⊕ c = a ⊕ (b ⊕ c)",
        3,
        lambda k, a, b, c: (k.plus(k.plus(a, b), c), k.plus(a, k.plus(b, c))),
    ),
    Axiom(
        "⊗ is associative: (a ⊗ b) ⊗ c = a ⊗ (b ⊗ c)",
        3,
        lambda k, a, b, c: (k.times(k.times(a, b), c), k.times(a, k.times(b, c))),
    ),
    Axiom(
        "⊗ distributes over ⊕: a ⊗ (b ⊕ c) = (a ⊗ b) ⊕ (a ⊗ c)",
        3,
        lambda k, a, b, c: (k.times(a, k.plus(b, c)), k.plus(k.times(a, b), k.times(a, c))),
    ),
    Axiom("an absent edge lifts to zero: λ(0) = 0", 0, lambda k: (k.lift(0.0), k.zero)),
    Axiom("the weight 1 lifts to one: λ(1) = 1", 0, lambda k: (k.lift(1.0), k.one)),
    Axiom(
        "λ is multiplicative: λ(a · b) = λ(a) ⊗ λ(b)",
        2,
        lambda k, a, b: (k.lift(a * b), k.times(k.lift(a), k.lift(b))),
        number=True,
    ),
)


def check_axioms(
    semiring: Semiring, samples: Iterable[float] = SAMPLES, more: Sequence[Any] = (), tolerance: float = 1e-9
) -> None:
    """Check every axiom on all triples of elements made from some edge weights.

    Args:
        semiring: on plain numbers (its `carrier` is not looked at).
        samples: edge weights; their lifts and sums of two lifts are the elements.
        more: further elements.
        tolerance: relative, per number.

    Raises:
        BrokenAxiom: names the first that fails, with the elements.

    >>> from gradtrace.semiring import Max
    >>> check_axioms(Max)
    """
    weights = list(dict.fromkeys(samples))
    lifts = [semiring.lift(w) for w in weights]
    sums = [semiring.plus(a, b) for a, b in pairwise(lifts)]
    elements = _distinct([semiring.zero, semiring.one, *lifts, *sums, *more])
    for axiom in AXIOMS:
        pool = [w for w in weights if math.isfinite(w)] if axiom.number else elements
        for chosen in product(pool, repeat=axiom.arity):
            left, right = axiom.sides(semiring, *chosen)
            if not same(left, right, tolerance):
                named = ", ".join(f"{n} = {v}" for n, v in zip("abc", chosen, strict=False))
                where = f" for {named}" if named else ""
                raise BrokenAxiom(f"{semiring.name} breaks an axiom, {axiom.name}{where}: {left} is not {right}")


def _distinct(elements: Sequence[Any]) -> list[Any]:
    out: list[Any] = []
    for element in elements:
        if not any(element == known for known in out):
            out.append(element)
    return out


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Compare numbers, and tuples of them, up to rounding; NaN equals nothing."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    return bool(a == b)
