"""The family: every question that one reverse pass answers, and `named`, which finds each by its name.

    Sum, AbsSum, Max, Count     one number a scalar (base)
    Power(p), Entropy           one number a scalar
    TopK(k), SignedMax          several paths a scalar, with backpointers
    Graded(…), Through(…)       another semiring's value, split by the components that paths cross
    make(…)                     one of your own

`check_axioms` looks for a sample on which something is no semiring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..errors import GradtraceError, UnknownName
from .axioms import BrokenAxiom, check_axioms
from .base import SEMIRINGS, AbsSum, Count, Max, Semiring, Sum
from .entropy import Entropy
from .folding import Folded, make
from .graded import Graded, Through
from .power import Power
from .ranked import SignedMax, TopK

__all__ = [
    "AbsSum",
    "BrokenAxiom",
    "Count",
    "Entropy",
    "Folded",
    "Graded",
    "Max",
    "Power",
    "Semiring",
    "SignedMax",
    "Sum",
    "Through",
    "TopK",
    "check_axioms",
    "make",
    "named",
]

Family: TypeAlias = Semiring | Graded | Through

PLAIN: dict[str, Family] = {**SEMIRINGS, "entropy": Entropy, "signedmax": SignedMax, "through": Through()}
FORMS = (*PLAIN, "topk:K", "power:P", "graded[:MAX_DEGREE][:SEMIRING]")


def named(semiring: Family | str) -> Family:
    """Give a semiring itself, or the one of that name.

    Raises:
        UnknownName: there is none; the message lists those that exist.

    >>> named("power:8").name
    'power:8'
    """
    if not isinstance(semiring, str):
        if not isinstance(semiring, (Semiring, Graded, Through)):
            raise UnknownName(f"{semiring!r} is no semiring; one of {', '.join(FORMS)}, or one made by `make`")
        return semiring
    name, _, parameters = semiring.partition(":")
    try:
        if semiring in PLAIN:
            return PLAIN[semiring]
        return PARAMETRIC[name](parameters)
    except (KeyError, ValueError):
        raise UnknownName(f"unknown semiring {semiring!r}; one of {', '.join(FORMS)}") from None
    except GradtraceError as error:
        raise UnknownName(f"semiring {semiring!r}: {error.said}") from None


def _graded(parameters: str) -> Graded:
    degree, _, base = parameters.partition(":")
    if degree in SEMIRINGS and not base:
        degree, base = "", degree
    return Graded(int(degree) if degree else None, semiring=SEMIRINGS[base] if base else Sum)


PARAMETRIC: dict[str, Callable[[str], Family]] = {
    "topk": lambda k: TopK(int(k)),
    "power": lambda p: Power(float(p)),
    "graded": _graded,
}
