"""Lanes: the states of a grading as entries of one batch, so that a structure is pulled once for all of them.

Most states hold nothing at a given value, or the same as another: where all paths run through a component, what avoids
it is nothing, and what crosses it is everything. Lanes that hold nothing are views of one zero, lanes that hold the
same are one tensor, and neither is worked out twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from ..semirings.base import Carrier, Element
from ..semirings.states import Pairs, States
from .reference import pull

Key: TypeAlias = tuple[int, tuple[int, ...], torch.dtype]


def _key(plane: Tensor) -> Key:
    """Tell planes apart, as long as they live: where their numbers are."""
    return plane.data_ptr(), plane.stride(), plane.dtype


@dataclass(frozen=True)
class Lanes(States):
    """States of a base carrier whose elements are one plane of plain numbers, 0 where there is no path."""

    points = False

    empty: Tensor = field(default_factory=lambda: torch.zeros(()), compare=False)

    def one(self, like: Tensor) -> Element:
        (one,) = self.base.one(like)
        return tuple(one if s in self.starts else self.nothing((one,))[0] for s in range(self.count))

    @property
    def starts(self) -> range:
        """The states that a path begins in."""
        return range(1)

    def _none(self, plane: Tensor) -> bool:
        return plane.data_ptr() == self.empty.data_ptr()

    def nothing(self, like: Element) -> Element:
        return (self.empty.expand(like[0].shape),)

    def merged(self, a: Element, b: Element) -> Element:
        return b if self._none(a[0]) else a if self._none(b[0]) else self.base.plus(a, b)

    def chosen(self, mask: Tensor, a: Element, b: Element) -> Element:
        if _key(a[0]) == _key(b[0]):
            return a
        return (torch.where(mask, a[0], b[0]),)

    def plus(self, a: Element, b: Element) -> Element:
        known: dict[tuple[Key, Key], Tensor] = {}
        keys = [(_key(p), _key(q)) for p, q in zip(a, b, strict=True)]
        for both, p, q in zip(keys, a, b, strict=True):
            if both not in known:
                known[both] = self.merged((p,), (q,))[0]
        return tuple(known[both] for both in keys)

    def plus_over(self, a: Element, b: Element) -> Element:
        if any(map(self._none, (*a, *b))):
            return self.plus(a, b)
        return tuple(self.base.plus_over((p,), (q,))[0] for p, q in zip(a, b, strict=True))

    def seed(self, g: Element, ids: Tensor) -> Element:
        if type(self.base).seed is Carrier.seed:
            return g
        return self._once(g, lambda some: [self.base.seed((p,), ids)[0] for p in some])

    def along(self, structure: object, g: Element) -> Element | None:
        return self._once(g, lambda some: _pulled(structure, self.base, some))

    def _once(self, g: Element, f: Callable[[list[Tensor]], Sequence[Tensor]]) -> Element:
        """Do something with all planes that differ and hold something, at once."""
        none = self.empty.data_ptr()
        keys = [_key(p) for p in g]
        distinct = {key: p for key, p in zip(keys, g, strict=True) if key[0] != none}
        if not distinct:  # nothing comes here; the shape of what nothing becomes has to be found all the same
            return tuple(f([g[0]])) * len(g)
        out = f(list(distinct.values()))
        found = dict(zip(distinct, out, strict=True))
        nothing = self.empty.expand(out[0].shape)
        return tuple(found.get(key, nothing) for key in keys)


def _pulled(structure: object, base: Carrier, planes: Sequence[Tensor]) -> Sequence[Tensor]:
    """Pull planes of 1 × y as one batch."""
    if len(planes) == 1:
        return pull(structure, base, tuple(planes))
    (out,) = pull(structure, base, (torch.cat(_alike(planes)),))
    return out.split(1)


def _alike(planes: Sequence[Tensor]) -> list[Tensor]:
    kinds = {p.dtype for p in planes}
    return list(planes) if len(kinds) == 1 else [p.to(torch.float64) for p in planes]


@dataclass(frozen=True)
class PairLanes(Lanes, Pairs):
    """Lanes of `graded.Crossed`."""

    @property
    def starts(self) -> range:
        return range(0, self.count, 2)


def lanes(states: States, base: Carrier) -> Lanes:
    """Give states as lanes of a carrier of plain numbers."""
    kind = base.one(torch.ones(()))[0].dtype
    return (PairLanes if isinstance(states, Pairs) else Lanes)(base, states.count, torch.zeros((), dtype=kind))
