"""The carrier of ordinary gradients: one signed plane in the model's precision, on kernels of its own (`additive`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..semirings.base import Element, Linear, as_is
from . import additive
from .shared_exponent import OutOfRange


@dataclass(frozen=True)
class Finite(Linear):
    """Numbers that are added up on kernels of their own, none of which is looked at for range on the way."""

    def plus_over(self, a: Element, b: Element) -> Element:
        return (a[0].add_(b[0]),)

    def plain(self, g: Element) -> Tensor:
        """Give the numbers.

        Raises:
            OutOfRange: one of them is not finite.
        """
        if g[0].numel() and not math.isfinite(g[0].sum()):
            raise OutOfRange
        return g[0]


@dataclass(frozen=True)
class Gradient(Finite):
    """Gradients, in a precision of one's choice (`kind`): half a model's precision is not enough for sums.

    They underflow where autograd's do. What is infinite, or no number, is left to carriers that look at every product:
    beside an infinite gradient an absent edge is absent, where 0 · inf is no number.
    """

    def along(self, structure: object, g: Element) -> Element | None:
        return (additive.pull(structure, g[0]),)


def gradient(kind: torch.dtype) -> Gradient:
    """Make the carrier of gradients in some precision."""
    return Gradient(as_is, kind)
