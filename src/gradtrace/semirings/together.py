"""Several semirings in one walk of the tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Carrier, Element


@dataclass(frozen=True)
class Together(Carrier):
    """Carriers side by side: each has some of the planes, and none sees the others'.

    The structures of each operator call, and the weights in them, are worked out once for all.
    """

    carriers: tuple[Carrier, ...]
    ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        widths = torch.tensor([len(c.one(torch.ones(()))) for c in self.carriers])
        object.__setattr__(self, "ends", tuple(widths.cumsum(0).tolist()))

    @property
    def points(self) -> bool:  # type: ignore[override]
        """Whether any of them follows ids."""
        return any(c.points for c in self.carriers)

    def part(self, g: Element, number: int) -> Element:
        """Give the planes of one carrier."""
        return g[self.ends[number - 1] if number else 0 : self.ends[number]]

    def parts(self, g: Element) -> list[tuple[Carrier, Element]]:
        """Give each carrier with its planes."""
        return [(c, self.part(g, n)) for n, c in enumerate(self.carriers)]

    def one(self, like: Tensor) -> Element:
        return _joined([c.one(like) for c in self.carriers])

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return _joined([c.zero(shape, own) for c, own in self.parts(like)])

    def seed(self, g: Element, ids: Tensor) -> Element:
        return _joined([c.seed(own, ids) for c, own in self.parts(g)])

    def along(self, structure: object, g: Element) -> Element | None:
        return _all([c.along(structure, own) for c, own in self.parts(g)])

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return _joined([c.weigh(weight, own) for c, own in self.parts(g)])

    def reduce(self, g: Element) -> Element:
        return _joined([c.reduce(own) for c, own in self.parts(g)])

    def others(self, g: Element) -> Element:
        return _joined([c.others(own) for c, own in self.parts(g)])

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        return _joined([c.segment(own, index, size) for c, own in self.parts(g)])

    def plus(self, a: Element, b: Element) -> Element:
        both = zip(self.parts(a), self.parts(b), strict=True)
        return _joined([c.plus(own, other) for (c, own), (_, other) in both])

    def contract(self, weight: Tensor, g: Element) -> Element:
        return _joined([c.contract(weight, own) for c, own in self.parts(g)])

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        return _all([c.low_rank(own, left, right, part) for c, part in self.parts(g)])

    def softmax(self, p: Callable[[], Tensor], g: Element, *, log: bool) -> Element | None:
        return _all([c.softmax(p, part, log=log) for c, part in self.parts(g)])

    def plain(self, g: Element) -> Tensor:
        """Give the first carrier's numbers; ask each carrier for its own."""
        return self.carriers[0].plain(self.part(g, 0))


def _all(elements: Sequence[Element | None]) -> Element | None:
    """Put elements side by side; None where any of them is missing."""
    found = [element for element in elements if element is not None]
    return _joined(found) if len(found) == len(elements) else None


def _joined(elements: Sequence[Element]) -> Element:
    return tuple(plane for element in elements for plane in element)
