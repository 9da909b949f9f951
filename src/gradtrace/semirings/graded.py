"""Gradings: a semiring's value, split by what the paths cross on their way.

A grading is a small automaton that reads the vertices of a path from the loss towards the leaf, and an element has one
part for each of its states. The arithmetic stays the base semiring's, state by state; what is new is that a path which
comes to a vertex moves to another state there. So every part is exact, and the parts add up to what the base
semiring gives alone. A path is in exactly one part; the part of a component is not what would be missing without it,
because the rest of the network would compute other numbers then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import BadArgument
from ..recording.components import Component, Slice, check, expand, matches, must_be_seen, name_of, top_level
from ..recording.record import Call, Record, Value
from .base import AbsSum, Carrier, Element, Scaled, Semiring, Sum, named
from .states import Mask, Pairs, States

MOST_STATES = 512
Enter = Callable[[Element, Value, Call | None], Element]
WIDE: dict[str, Carrier] = {Sum.name: Scaled(), AbsSum.name: Scaled(torch.abs)}  # the same, without underflow


# ---------------------------------------------------------------- which vertices are in which component


def inside(component: Component, value: Value, call: Call | None) -> Mask | None:
    """Give which scalars of a value are in a component: True for all, None for none, or a mask of its shape."""
    if isinstance(component, Slice) and call is None:
        return component.mask(value.shape) if value.name == component.module else None
    if call is None or not matches(call, name_of(component)):
        return None
    return component.mask(value.shape, call) if isinstance(component, Slice) else True


def returns(record: Record, loss: Value, component: Component) -> bool:
    """Tell whether some path may leave a component and come back into it (always assumed of a `Slice`)."""
    if isinstance(component, Slice):
        return True
    name, crossed, left = name_of(component), set(), set()
    for call in record.before(loss):
        given = {i.value.id for i in call.inputs if i.value is not None}
        made = {v.id for v in call.outputs if v is not None}
        if matches(call, name):
            if given & left:
                return True
            crossed |= made
        elif given & (crossed | left):
            left |= made
    return False


def resolve(record: Record, components: Sequence[Component] | None) -> list[Component]:
    """Give the components that are meant: the outermost modules where none is named; each once, and existing."""
    found = expand(components) if components is not None else [*top_level(record)]
    check(record, found)
    must_be_seen(record, found)
    if not found:
        raise BadArgument("no components to grade by: the tape has no module calls")
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- Graded


@dataclass(frozen=True)
class Degrees:
    """States (which of some components were crossed, how many of all were): the grading of `Graded`.

    A component to which no path returns is counted where a path comes into it. One that a path may leave and
    come back to is remembered by a bit, so that it is counted once; that doubles the number of states.
    """

    carrier: States
    most: int
    counted: tuple[Component, ...]
    remembered: tuple[Component, ...]

    @property
    def levels(self) -> int:
        """Degrees 0 … most, and one for all above."""
        return self.most + 2

    @property
    def result(self) -> Carrier:
        """Give the carrier of what `read` gives."""
        return States(self.carrier.base, self.levels)

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Count what a value is in and its consumer is not; `g` is what reaches it from there."""
        call = value.call
        more = sum(1 for c in self.counted if inside(c, value, call) and not (consumer and inside_call(c, consumer)))
        if more:
            higher = [min(degree + more, self.most + 1) for degree in range(self.levels)]
            target = [s - s % self.levels + higher[s % self.levels] for s in range(self.carrier.count)]
            g = self.carrier.moved(g, target, True)
        for bit, component in enumerate(self.remembered):
            mask = inside(component, value, call)
            if mask is not None:
                g = self.carrier.moved(g, [self._crossing(s, bit) for s in range(self.carrier.count)], mask)
        return g

    def _crossing(self, state: int, bit: int) -> int:
        known, degree = divmod(state, self.levels)
        return state if known >> bit & 1 else (known | 1 << bit) * self.levels + min(degree + 1, self.most + 1)

    def read(self, g: Element) -> Element:
        """Merge the states of one degree."""
        parts = self.carrier.parts(g)
        out: list[Element] = parts[: self.levels]
        for start in range(self.levels, self.carrier.count, self.levels):
            out = [self.carrier.base.plus(a, b) for a, b in zip(out, parts[start:], strict=False)]
        return tuple(plane for part in out for plane in part)


def inside_call(component: Component, call: Call) -> bool:
    """Tell whether a call's results are in a component that is no slice."""
    return matches(call, name_of(component))


@dataclass(frozen=True)
class Graded:
    """How much of g is carried by paths that cross exactly n of the named components, n = 0 … max_degree.

    g_v = Σ_n c_n zⁿ, a polynomial over another semiring: ⊕ adds coefficients, ⊗ with an edge multiplies them, and
    a path that crosses a component is multiplied by z, once for each. Under `Sum` the coefficients are signed parts
    of the gradient, under `AbsSum` of the total path weight, under `Max` the strongest path of each length: the
    path-length spectrum of a residual network, exact, in one pass. Results have max_degree + 2 entries in front: the
    last is what crosses more than max_degree. It does not tell which components; and a large share at n says nothing
    about what the network would do with n components only.

    Attributes:
        max_degree: how many degrees to keep apart; all by default.
        by: the components; the outermost modules by default. A path crosses each at most once.
        semiring: what is split: Sum, AbsSum, Max, Count, Power(p).
    """

    max_degree: int | None = None
    by: tuple[Component, ...] | None = None
    semiring: Semiring = Sum

    def __post_init__(self) -> None:
        if self.max_degree is not None and not (isinstance(self.max_degree, int) and self.max_degree >= 0):
            raise BadArgument(f"Graded(max_degree) needs a whole number from 0, not {self.max_degree!r}")
        object.__setattr__(self, "semiring", named(self.semiring))
        if self.by is not None:
            object.__setattr__(self, "by", _components(self.by))

    @property
    def name(self) -> str:
        """Name it as the command line does."""
        degree = "" if self.max_degree is None else str(self.max_degree)
        return f"graded:{degree}".rstrip(":") + ("" if self.semiring is Sum else f":{self.semiring.name}")

    def on(self, record: Record, loss: Value) -> Degrees:
        """Set up the states for one tape."""
        components = resolve(record, self.by)
        back = {c: returns(record, loss, c) for c in components}
        remembered = tuple(c for c in components if back[c])
        most = len(components) if self.max_degree is None else self.max_degree
        states = 2 ** len(remembered) * (most + 2)
        if states > MOST_STATES:
            raise BadArgument(
                f"Graded would need {states} states: a path may leave {', '.join(map(str, remembered))} and come back, "
                f"which takes a bit of memory each; name single calls (rnn:1, rnn:2), or fewer components"
            )
        base = WIDE.get(self.semiring.name, self.semiring.carrier)
        counted = tuple(c for c in components if not back[c])
        return Degrees(States(base, states), most, counted, remembered)


def polynomial(base: Semiring, max_degree: int) -> Semiring:
    """Give the semiring of polynomials in z of some degree over another, on plain numbers; the last entry is the rest.

    >>> polynomial(Sum, 1).times((0.0, 2.0, 0.0), (1.0, 3.0, 0.0))  # 2z · (1 + 3z) = 2z + 6z²
    (0.0, 2.0, 6.0)
    """
    size = max_degree + 2

    def times(a: tuple, b: tuple) -> tuple:
        out = [base.zero] * size
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                n = min(i + j, size - 1)
                out[n] = base.plus(out[n], base.times(x, y))
        return tuple(out)

    return Semiring(
        f"polynomial:{base.name}",
        (base.zero,) * size,
        (base.one, *[base.zero] * (size - 1)),
        lambda a, b: tuple(base.plus(x, y) for x, y in zip(a, b, strict=True)),
        times,
        lambda w: (base.lift(w), *[base.zero] * (size - 1)),
        States(base.carrier, size),
    )


# ---------------------------------------------------------------- Through


@dataclass(frozen=True)
class Crossed:
    """For each component two states, not crossed and crossed, side by side: the grading of `Through`."""

    carrier: States
    components: tuple[Component, ...]

    @property
    def result(self) -> Carrier:
        """Give the carrier of what `read` gives."""
        return self.carrier

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Move what reaches a vertex inside a component to the component's second state."""
        del consumer  # a path that has crossed has crossed
        for number, component in enumerate(self.components):
            mask = inside(component, value, value.call)
            if mask is not None:
                target = list(range(self.carrier.count))
                target[2 * number] = 2 * number + 1
                g = self.carrier.moved(g, target, mask)
        return g

    def read(self, g: Element) -> Element:
        """Put the crossed parts first, then the others."""
        parts = self.carrier.parts(g)
        return tuple(plane for part in parts[1::2] + parts[::2] for plane in part)


@dataclass(frozen=True)
class Through:
    """For each component, the part of the ordinary gradient carried by paths through it, and the part that avoids it.

    g_v = (Σ over paths that cross C, Σ over paths that don't), signed and exact; the two add up to the gradient.
    Results have 2 × components in front: [0] through, [1] around. The parts can be larger than the gradient, with
    opposite signs. The part around C is not the gradient without C, which would be taken at other forward values.

    Attributes:
        components: by default the outermost modules.
        semiring: what is split; `Sum` is the gradient.
    """

    components: tuple[Component, ...] | None = None
    semiring: Semiring = Sum

    def __post_init__(self) -> None:
        object.__setattr__(self, "semiring", named(self.semiring))
        if self.components is not None:
            object.__setattr__(self, "components", _components(self.components))

    name = "through"

    def on(self, record: Record, loss: Value) -> Crossed:
        """Set up the states for one tape."""
        del loss
        components = tuple(resolve(record, self.components))
        base = WIDE.get(self.semiring.name, self.semiring.carrier)
        return Crossed(Pairs(base, 2 * len(components)), components)


def _components(given: Component | Sequence[Component]) -> tuple[Component, ...]:
    parts = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    for part in parts:
        if not isinstance(part, (str, Slice)):
            raise BadArgument(f"a component is a name, a glob or a Slice, not {part!r}")
    return tuple(parts)
