"""The carrier of several states side by side: what a path's element is split into by where the path went.

Which states there are, and when a path moves from one to another, is a grading's to say: see `graded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Carrier, Element

Mask = Tensor | bool


@dataclass(frozen=True)
class States(Carrier):
    """One element of the base carrier for each state, side by side; no operation mixes them."""

    base: Carrier
    count: int

    def parts(self, g: Element) -> list[Element]:
        """Cut into one element for each state."""
        width = len(g) // self.count
        return [g[i * width : (i + 1) * width] for i in range(self.count)]

    def _all(self, f: Callable[..., Element], *elements: Element) -> Element:
        states = zip(*(self.parts(g) for g in elements), strict=True)
        return tuple(plane for state in states for plane in f(*state))

    def one(self, like: Tensor) -> Element:
        """Give one in the first state, zero in the others."""
        one = self.base.one(like)
        return one + self.base.zero(tuple(like.shape), one) * (self.count - 1)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return self._all(lambda own: self.base.zero(shape, own), like)

    def seed(self, g: Element, ids: Tensor) -> Element:
        return self._all(lambda own: self.base.seed(own, ids), g)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return self._all(lambda own: self.base.weigh(weight, own), g)

    def reduce(self, g: Element) -> Element:
        return self._all(self.base.reduce, g)

    def others(self, g: Element) -> Element:
        return self._all(self.base.others, g)

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        return self._all(lambda own: self.base.segment(own, index, size), g)

    def plus(self, a: Element, b: Element) -> Element:
        return self._all(self.base.plus, a, b)

    def contract(self, weight: Tensor, g: Element) -> Element:
        rows = g[0].shape[1]  # all states' rows in one product: b × state·i × k
        joined = tuple(torch.cat(planes, 1) for planes in zip(*self.parts(g), strict=True))
        out = self.base.contract(weight, joined)
        return tuple(p[:, s * rows : (s + 1) * rows] for s in range(self.count) for p in out)

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        batch = g[0].shape[0]  # all states' entries in one batch: state·batch × rows × n
        joined = tuple(torch.cat(planes) for planes in zip(*self.parts(g), strict=True))
        out = self.base.low_rank(own, left, right, joined)
        if out is None:
            return None
        return tuple(p[s * batch : (s + 1) * batch] for s in range(self.count) for p in out)

    def moved(self, g: Element, target: Sequence[int], mask: Mask) -> Element:
        """Move the parts of the scalars in `mask` from each state s to target[s], merging those that meet there."""
        parts, out = self.parts(g), []
        coming: list[list[int]] = [[] for _ in parts]
        for state, to in enumerate(target):
            coming[to].append(state)
        for state, sources in enumerate(coming):
            if sources == [state]:
                out.append(parts[state])
                continue
            merged = parts[sources[0]] if sources else self.nothing(parts[0])
            for more in sources[1:]:
                merged = self.merged(merged, parts[more])
            out.append(merged if isinstance(mask, bool) else self.chosen(mask, merged, parts[state]))
        return tuple(plane for part in out for plane in part)

    def nothing(self, like: Element) -> Element:
        """Give one state's part where there is no path, in the shape of another's."""
        zero = self.base.zero((1,) * like[0].dim(), like)
        return tuple(z.expand(p.shape) for z, p in zip(zero, like, strict=True))

    def merged(self, a: Element, b: Element) -> Element:
        """Merge two states' parts."""
        return self.base.plus(a, b)

    def chosen(self, mask: Tensor, a: Element, b: Element) -> Element:
        """Take one part where the mask says so, elsewhere another."""
        return tuple(torch.where(mask, p, q) for p, q in zip(a, b, strict=True))

    def plain(self, g: Element) -> Tensor:
        return torch.stack([self.base.plain(own) for own in self.parts(g)], 1)

    def log2(self, g: Element) -> Tensor:
        return torch.stack([self.base.log2(own) for own in self.parts(g)], 1)


@dataclass(frozen=True)
class Pairs(States):
    """Two states for each of several components, of which the first starts with one: see `graded.Through`."""

    def one(self, like: Tensor) -> Element:
        one = self.base.one(like)
        return (one + self.base.zero(tuple(like.shape), one)) * (self.count // 2)

    def plain(self, g: Element) -> Tensor:
        return super().plain(g).unflatten(1, (2, self.count // 2))

    def log2(self, g: Element) -> Tensor:
        return super().log2(g).unflatten(1, (2, self.count // 2))
