"""What edges add up to at one tensor, beside what autograd has there.

The bound of `rounding` needs a second sum, of absolute terms. It is at least as large as the sum itself, so what is
within the same factor of the sum needs no other: most numbers are, many of them equal to the last bit, and few tensors
are looked at twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import Strided, Structure
from ..kernels.additive import add_to_window
from ..recording.layouts import Shape
from ..recording.record import Call
from .rounding import FORMULA, absolute, allowed, at_least, least, piled, roundoff, total

NEAR = 2  # sums before one that are asked for their slack first: what was added up may have been moved since
FEW = 4  # parts of which the slack is a lower bound of that of all
SMALL = 2048  # numbers that `torch.equal` compares as fast as anything


class Part(NamedTuple):
    """What one edge brings.

    Attributes:
        structure, call: along what.
        g: what reaches the call's result.
        source: the sum that g is, if rounding may have moved it; None: g is exact.
    """

    structure: Structure
    call: Call
    g: Tensor
    source: Added | None = None


class Fit(NamedTuple):
    """How much of a bound is used where most of it is (in [0, 1], else it is broken), and the bound, in Σ |terms|.

    The bound takes as long as the comparison, and few are asked for theirs.
    """

    used: float
    bound: Callable[[], float]


class Added:
    """The sum of what some edges bring to one tensor.

    Args:
        shape, dtype: the tensor's.
        kept: whether the parts were added up, and kept, in the tensor's own type, which rounds.
        swift: work in the precision of what is added first, and carefully only where that does not settle it.

    Attributes:
        g: Σ terms.
        floor: a lower bound of the slack, in |g|: each sum on the shortest way here has rounded.
    """

    __slots__ = ("_slack", "dtype", "floor", "g", "kept", "owned", "parts", "shape", "swift")

    def __init__(self, shape: Shape, dtype: torch.dtype, *, kept: bool = False, swift: bool = False) -> None:
        self.shape, self.dtype, self.kept, self.swift = shape, dtype, kept, swift
        self.parts: list[Part] = []
        self.g: Tensor | None = None
        self.owned = False
        self.floor = math.inf
        self._slack: Tensor | None = None

    @property
    def calls(self) -> list[Call]:
        """What the parts come from, each once."""
        return list(dict.fromkeys(part.call for part in self.parts))

    def add(self, part: Part) -> None:
        """Add what one more edge brings."""
        self.parts.append(part)
        structure = part.structure
        before = 0.0 if part.source is None else part.source.floor
        self.floor = min(self.floor, before + FORMULA * roundoff(self.dtype))
        if self.owned and type(structure) is Strided and add_to_window(structure, part.g, self.g):
            return
        more = total(structure, part.g, self._precision(part)).reshape(self.shape)
        if self.g is None:
            self.g = more
        elif self.owned and more.dtype is self.g.dtype:
            self.g.add_(more)
        else:
            self.g, self.owned = self.g + more, True

    def sum(self) -> Tensor:
        """Give Σ terms."""
        return torch.zeros(self.shape, dtype=torch.float64) if self.g is None else self.g

    def sizes(self) -> Tensor:
        """Give Σ |terms|."""
        sizes = torch.zeros(self.shape, dtype=torch.float64)
        for part in self.parts:
            sizes += absolute(part.structure, part.g.abs(), self._precision(part)).reshape(self.shape)
        return sizes

    def slack(self) -> Tensor:
        """Give how far rounding may have taken two such sums apart; worked out when first asked for."""
        waiting = [self]  # instead of a recursion: there may be thousands of steps
        while waiting:
            before = [p.source for p in waiting[-1].parts if p.source is not None and p.source._slack is None]
            waiting += before
            if not before and (last := waiting.pop())._slack is None:  # others may have waited for the same one
                last._slack = last._slack_of()
        assert self._slack is not None
        return self._slack

    def _slack_of(self, near: int | None = None) -> Tensor:
        """Give the slack; or a lower bound of it, by few parts, and so many sums before this one."""
        lost = least(self.dtype) * (len(self.parts) if self.kept else 1)
        slack = torch.full(self.shape, lost, dtype=torch.float64)
        for part in self.parts if near is None else self.parts[:: -(-len(self.parts) // FEW)]:
            structure, call, g, source = part
            factor, terms = allowed(structure, call) + self._fan(), g.abs()
            if source is not None:  # in units of the terms, so that both go along the edge as one
                of_source = source.slack if near is None else partial(source._slack_of, near - 1)
                terms = terms + (terms * source.floor if near == 0 else of_source()) / factor
            slack.add_(absolute(structure, terms, self._precision(part)).reshape(self.shape), alpha=factor)
        return slack

    def fit(self, autograd: Tensor) -> Fit:
        """Compare with autograd's number; where that is not within the bound, `g` and `slack` are careful ones."""
        g = self.sum()
        if same(g, autograd):
            return Fit(0.0, lambda: 0.0)
        apart = (g - autograd).abs_()
        if self.parts:
            factor = min(at_least(part.structure, part.call) for part in self.parts) + self._fan()
            used = float(apart.div(g.abs().mul_(factor).add_(least(self.dtype))).max())
            if used <= 1:
                return Fit(used, lambda: factor)
            found = self._beside(apart, self._slack_of(NEAR))
            if found.used <= 1:
                return found
        found = self._beside(apart, self.slack())
        if found.used <= 1 or not self.swift:
            return found
        parts, self.parts = self.parts, []
        self.swift, self.g, self.owned, self._slack = False, None, False, None
        for part in parts:
            self.add(part)
        return self._beside((self.sum() - autograd).abs_(), self.slack())

    def _beside(self, apart: Tensor, slack: Tensor) -> Fit:
        if self.swift and not math.isfinite(slack.sum()):
            return Fit(math.inf, lambda: math.inf)
        share = apart.div(slack).flatten()
        at = share.argmax()
        used = float(share[at])
        if not used <= 1:
            return Fit(used, lambda: math.inf)  # nobody is told a bound that is broken
        there = float(slack.flatten()[at])
        return Fit(used, lambda: there / (float(self.sizes().flatten()[at]) or 1.0))

    def _fan(self) -> float:
        return (len(self.calls) + 1) * roundoff(self.dtype) if self.kept else 0.0

    def _precision(self, part: Part) -> torch.dtype | None:
        if not self.swift:
            return None
        wide = self.dtype is torch.float64 or part.g.dtype is torch.float64 or piled(part.structure)
        return torch.float64 if wide else torch.float32


def same(a: Tensor, b: Tensor) -> bool:
    """Tell whether numbers are equal, in the second's type if that is a short one; NaN equals nothing."""
    if b.dtype.itemsize < 4 or b.numel() < SMALL:
        return torch.equal(a if a.dtype is b.dtype else a.to(b.dtype), b)
    return bool((a.numpy() == b.numpy()).all())  # of many, several times as fast as `torch.equal`
