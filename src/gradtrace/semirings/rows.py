"""Rows of low rank: what a carrier merges along l_i · r_j, for all i ≠ j, without writing n² weights out.

A row's scalars are all connected, by the products of two vectors each: a layer norm, a batch norm. Sums of signed
numbers come apart into the sums of each rank (`Carrier.low_rank`). Sums of absolute values and numbers of edges do
not: there it counts on which side of r_j's perpendicular l_i lies, so the l_i are sorted by their angle, and each j
needs the sums over two runs of them. Entries that plain numbers cannot settle are merged by themselves, term by term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from .exponents import Element, normalised, shifted

RUN = 32  # numbers that are added up one after the other
BLOCK = 1 << 20  # numbers of rows, or terms of entries, held at a time
NOISE = 1e-3  # of what terms amount to before they cancel: a difference below is not trusted
LEAST = 1e-250  # in units of a row's largest: below, products of three numbers may have underflowed
ALIKE = 1e-14  # angles nearer than this may be a right one


class Merging(Protocol):
    """What is asked of a carrier: see `base.Carrier`."""

    def weigh(self, weight: Tensor, g: Element) -> Element: ...
    def reduce(self, g: Element) -> Element: ...
    def others(self, g: Element) -> Element: ...


Merge: TypeAlias = Callable[[Merging, Tensor, Tensor, Element], Element]


def others(t: Tensor) -> Tensor:
    """Add up, for each position of the last axis, all the other ones; nothing is subtracted, so nothing cancels.

    >>> others(torch.tensor([1e30, 1.0, 2.0])).tolist()[0]
    3.0
    """
    n = t.shape[-1]
    if n <= RUN:
        return _others_in_a_run(t)
    runs = (pad(t, (0, -n % RUN)) if n % RUN else t).unflatten(-1, (-1, RUN))
    return _others_in_a_run(runs).add_(others(runs.sum(-1)).unsqueeze(-1)).flatten(-2)[..., :n]


def _others_in_a_run(t: Tensor) -> Tensor:
    n = t.shape[-1]
    if finite(t):
        return t @ (1 - torch.eye(n, dtype=t.dtype, device=t.device))
    before, after = (pad(side, (1, 0)).cumsum(-1)[..., :-1] for side in (t, t.flip(-1)))  # 0 · inf is no number
    return before + after.flip(-1)


def finite(*tensors: Tensor) -> bool:
    """Tell whether there is no NaN and nothing infinite; sums that overflow say no as well."""
    return all(math.isfinite(t.sum()) for t in tensors)


def some_at_a_time(merge: Merge, carrier: Merging, left: Tensor, right: Tensor, g: Element) -> Element:
    """Merge some rows at a time: see `absolute`."""
    step = max(1, BLOCK // max(1, g[0].shape[0] * g[0].shape[2]))
    starts = range(0, len(left), step)
    cut = [(left[r : r + step], right[r : r + step], tuple(p[:, r : r + step] for p in g)) for r in starts]
    parts = [merge(carrier, *part) for part in cut]
    return tuple(torch.cat(planes, 1) for planes in zip(*parts, strict=True))


def absolute(carrier: Merging, left: Tensor, right: Tensor, g: Element) -> Element:
    """Give Σ over i≠j of |l_i · r_j| g_i: O(n log n) for each row.

    Args:
        carrier: of mantissas and exponents that are added up, g ≥ 0.
        left, right: rows × n × 2, float64, finite.
        g: batch × rows × n.
    """
    unit_l, unit_r, unit_g = _exponent(left, (-1, -2)), _exponent(right, (-1, -2)), g[1].amax(-1, keepdim=True)
    values, line, r = shifted(g[0], g[1] - unit_g), _upwards(shifted(left, -unit_l)), shifted(right, -unit_r)
    angle, order = _angle(line).sort(-1)
    before = torch.searchsorted(angle, _angle(_upwards(_turned(r))))  # rows × n: how many l_i lie on one side of r_j
    terms = line * values.unsqueeze(-1)  # batch × rows × n × 2
    sums = pad(_taken(terms, order).cumsum(-2), (0, 0, 1, 0))
    signed = (sums[..., -1:, :] - 2 * _taken(sums, before)) * r
    rest = signed.sum(-1).abs() - (terms * r).sum(-1).abs()
    size = (terms.abs().sum(-2, keepdim=True) * r.abs()).sum(-1)
    out = normalised(rest.clamp(min=0), unit_g + (unit_l + unit_r).squeeze(-1))
    live = _live(line).any(-1, keepdim=True) & (values > 0).any(-1, keepdim=True) & _live(r)
    return term_by_term(carrier, out, live & ((rest <= NOISE * size) | (size < LEAST)), left, right, g)


def present(carrier: Merging, left: Tensor, right: Tensor, g: Element) -> Element:
    """Give Σ over i≠j of g_i where l_i · r_j is not 0, as `absolute` does.

    Few products vanish: a j with none adds up all others, a j that may have one goes through all of them.
    """
    out = carrier.weigh(_live(right), carrier.others(carrier.weigh(_live(left), g)))
    angle, across = _angle(_upwards(left)).sort(-1).values, _angle(_upwards(_turned(right)))
    vanishing = torch.zeros_like(across, dtype=torch.bool)
    for turn in (-math.pi, 0.0, math.pi):  # 0 and π are one direction
        first, last = (torch.searchsorted(angle, across + turn + d) for d in (-ALIKE, ALIKE))
        vanishing |= last > first
    return term_by_term(carrier, out, vanishing.expand(out[0].shape), left, right, g)


def term_by_term(carrier: Merging, out: Element, redo: Tensor, left: Tensor, right: Tensor, g: Element) -> Element:
    """Merge anew what some scalars (`redo`, batch × rows × n) get from all others, and put it into `out`."""
    for some in redo.nonzero().split(max(1, BLOCK // max(1, left.shape[1]))):
        b, r, j = some.unbind(-1)
        weight = (left[r] * right[r, j].unsqueeze(-2)).sum(-1).scatter(-1, j.unsqueeze(-1), 0.0)
        merged = carrier.reduce(carrier.weigh(weight, tuple(plane[b, r] for plane in g)))
        for plane, values in zip(out, merged, strict=True):
            plane[b, r, j] = values.to(plane.dtype)
    return out


def _exponent(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Give the exponent of the largest number of each row."""
    return torch.frexp(t.abs().amax(dims, keepdim=True))[1]


def _live(vectors: Tensor) -> Tensor:
    return (vectors != 0).any(-1)


def _turned(vectors: Tensor) -> Tensor:
    """Turn by a right angle."""
    return torch.stack([-vectors[..., 1], vectors[..., 0]], -1)


def _upwards(vectors: Tensor) -> Tensor:
    """Turn around what points downwards, or to the left: a line is known by its angle in [0, π]."""
    x, y = vectors.unbind(-1)
    down = (y < 0) | ((y == 0) & (x < 0))
    return torch.where(down.unsqueeze(-1), -vectors, vectors)


def _angle(upwards: Tensor) -> Tensor:
    return torch.atan2(upwards[..., 1].abs(), upwards[..., 0])


def _taken(vectors: Tensor, at: Tensor) -> Tensor:
    """Take some of each row's vectors: batch × rows × m × 2, at places rows × n."""
    return vectors.gather(-2, at.unsqueeze(-1).expand(*vectors.shape[:-3], *at.shape, 2))
