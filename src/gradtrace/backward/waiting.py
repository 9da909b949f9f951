"""Products towards one value that wait for each other, and are then worked out as one.

The steps of a recurrent cell meet at its weights: of each there is a thin product, as large as the weight, which is
added to the others. Side by side along an axis that is merged anyway they are one product, and nothing is left to add.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch

from ..errors import NotANumber
from ..jacobians.structure import Closed, Constant, Contraction, Structure
from ..kernels.reference import pull
from ..recording.record import Call
from ..semirings.base import Carrier, Element
from .walk import naming


@dataclass(eq=False, slots=True)
class Waiting:
    """Products that have not been worked out.

    Attributes:
        kind: what products have in common that can be put side by side.
        letter: the axis along which they are.
        parts: structure, what reaches the result, and the call, of each.
        size: how many scalars their results have.
    """

    kind: tuple[Any, ...]
    letter: str
    parts: list[tuple[Contraction, Element, Call]]
    size: int

    def take(self, more: Waiting) -> bool:
        """Take in what can be put beside the others; memory is held for as much as the value itself takes."""
        if self.kind != more.kind or self.size + more.size > prod(self.parts[0][0].x_shape):
            return False
        self.parts += more.parts
        self.size += more.size
        return True

    def realise(self, carrier: Carrier) -> Element:
        """Work them out: batch × x.

        Raises:
            NotANumber: a weight is NaN; with the call whose it is.
        """
        try:
            return pull(self._joined(), carrier, self._given())
        except NotANumber:  # whose, if it is anybody's: what nothing reaches may be NaN by itself
            found = [_alone(*part, carrier) for part in self.parts]
            return reduce(carrier.plus, found)

    def _joined(self) -> Contraction:
        first, letter = self.parts[0][0], self.letter
        if len(self.parts) == 1:
            return first
        sizes, axis = [s.y_shape[s.y.index(letter)] for s, _, _ in self.parts], first.w.index(letter)
        known = dict(zip(first.y + first.x, first.y_shape + first.x_shape, strict=True))
        shape = [known[c] if c != letter else -1 for c in first.w]
        weight = torch.cat([s.weight().reshape(shape) for s, _, _ in self.parts if s.weight is not None], axis)
        y_shape = tuple(sum(sizes) if c == letter else n for c, n in zip(first.y, first.y_shape, strict=True))
        return Contraction(first.y, first.x, y_shape, first.x_shape, first.w, lambda: weight)

    def _given(self) -> Element:
        first, g, _ = self.parts[0]
        if len(self.parts) == 1:
            return g
        axis = 1 + first.y.index(self.letter)
        planes = zip(*(each for _, each, _ in self.parts), strict=True)
        shapes = [(len(g[0]), *s.y_shape) for s, _, _ in self.parts]
        return tuple(torch.cat([p.reshape(n) for p, n in zip(ps, shapes, strict=True)], axis) for ps in planes)


def _alone(structure: Contraction, g: Element, call: Call, carrier: Carrier) -> Element:
    with naming(call):
        return pull(structure, carrier, g)


def waiting(structure: Structure, g: Element, call: Call) -> Waiting | None:
    """Let a product wait: a contraction that merges an axis which its weight has too."""
    if type(structure) is not Contraction or isinstance(structure.weight, (Closed, Constant, type(None))):
        return None
    s = structure
    letter = next((c for c in s.y if c in s.w and c not in s.x), "")
    size = prod(s.y_shape)
    if not letter or not size or 2 * size > prod(s.x_shape):
        return None
    others = tuple(n for c, n in zip(s.y, s.y_shape, strict=True) if c != letter)
    kind = s.y, s.x, s.w, s.x_shape, others, len(g[0]), tuple([p.dtype for p in g])
    return Waiting(kind, letter, [(s, g, call)], size)
