"""The scalars with the strongest paths, found without a logarithm of every weight, or a second look at most of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..recording.record import Value
from .departures import given_by
from .forest import Forest

BLOCK = 256  # scalars of which the largest is found first
SAMPLED = 1 << 14  # scalars of a leaf among which those of all strengths are chosen


def strongest(
    forest: Forest, leaves: Sequence[Value], k: int, example: int | None = None
) -> list[tuple[float, int, int]]:
    """Find the k scalars of some leaves with the strongest paths, strongest first; of equals the first.

    Args:
        example: the one whose paths are meant; None for the strongest of all.

    Returns:
        (log2 of the weight, number of the leaf, flat index), fewer where there are not so many.
    """
    return Strengths(forest).strongest(leaves, k, example)


class _Weights(NamedTuple):
    """The weights of a leaf's paths.

    Attributes:
        rows: rows × scalars, over 2^exponent, or their log2 where there is none.
        least: what is no path's.
        tops: rows × blocks, the largest of each block of scalars; None where there are few scalars.
        where: the flat index of each scalar, rising, where others have no path; None where all are there.
    """

    rows: np.ndarray
    exponent: float | None
    least: float
    tops: np.ndarray | None
    where: np.ndarray | None


@dataclass(eq=False)
class Strengths:
    """Finds the strongest scalars, again and again."""

    forest: Forest
    _known: dict[int, _Weights] = field(default_factory=dict)
    _found: dict[tuple[int, int | None], tuple[int, list[tuple[float, int]]]] = field(default_factory=dict)

    def strongest(self, leaves: Sequence[Value], k: int, example: int | None = None) -> list[tuple[float, int, int]]:
        """Do what the function of that name does."""
        found = [(log2, n, flat) for n, leaf in enumerate(leaves) for log2, flat in self._of_leaf(leaf, k, example)]
        found.sort(key=lambda f: (-f[0], f[1], f[2]))
        return found[:k]

    def _of_leaf(self, leaf: Value, k: int, example: int | None) -> list[tuple[float, int]]:
        if not k or not leaf.numel:
            return []
        most, known = self._found.get((leaf.id, example), (0, []))
        if most < k:
            known = self._look(leaf, k, example)
            self._found[leaf.id, example] = k, known
        return known[:k]

    def _look(self, leaf: Value, k: int, example: int | None) -> list[tuple[float, int]]:
        weights = self._weights(leaf)
        flat, found = _largest(weights, k, example)
        order = np.lexsort((flat, -found))[:k]
        log2, flat = found[order], flat[order]
        if weights.exponent is not None:
            log2 = np.log2(log2.astype(np.float64)) + weights.exponent
        return list(zip(log2.tolist(), (flat if weights.where is None else weights.where[flat]).tolist(), strict=True))

    def _weights(self, leaf: Value) -> _Weights:
        if leaf.id not in self._known:
            rows, exponent, where = _rows(self.forest, leaf)
            blocks, rest = divmod(rows.shape[1], BLOCK)
            tops = None
            if blocks > 1:
                tops = rows[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).amax(2)
                tops = torch.cat([tops, rows[:, -rest:].amax(1, keepdim=True)], 1).numpy() if rest else tops.numpy()
            least = -math.inf if exponent is None else 0.0
            self._known[leaf.id] = _Weights(rows.numpy(), exponent, least, tops, where)
        return self._known[leaf.id]


def _rows(forest: Forest, leaf: Value) -> tuple[Tensor, float | None, np.ndarray | None]:
    """Give the weight of each scalar's path, 0 where there is none, and their exponent; or its log2, and None.

    Where only some scalars can have a path, their flat indices come with them.
    """
    given = given_by(forest, leaf) if forest.compact is not None else None
    if given is not None:
        some, where = given.some[0], None
        if given.rows is not None:
            width = leaf.numel // leaf.shape[0]
            where = (given.rows.numpy()[:, None] * width + np.arange(width)).reshape(-1)
        return some.reshape(len(some), -1), given.of, where
    every = forest.log2[leaf.id] if leaf.id in forest.log2 else torch.full((1, leaf.numel), -torch.inf)
    return every.reshape(len(every), -1), None, None


def of_all_strengths(forest: Forest, leaf: Value, k: int) -> list[int]:
    """Choose k scalars of a leaf that have a path, from the strongest to the weakest at even steps (flat indices).

    Of a large leaf a part of the scalars is looked at, at even steps too.
    """
    if not k:
        return []
    rows, exponent, where = _rows(forest, leaf)
    step = max(1, rows.shape[1] // SAMPLED)
    weight = rows[:, ::step].amax(0).numpy()
    live = np.flatnonzero(weight > (-math.inf if exponent is None else 0))
    if not len(live):
        return []
    ranks = np.linspace(0, len(live) - 1, min(k, len(live))).round().astype(np.int64)
    order = np.argpartition(-weight[live], ranks)  # each of these ranks has what a sort would put there
    found = live[order[ranks]] * step
    return (found if where is None else where[found]).tolist()


def _largest(weights: _Weights, k: int, example: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Give the places, in rising order, of the k largest and of what is as large as the last, and what is there.

    What has no path is left out.
    """
    rows, least, tops = weights.rows, weights.least, weights.tops
    chosen = slice(None) if example is None or len(rows) == 1 else slice(example, example + 1)
    if tops is None:
        places, found = np.arange(rows.shape[1]), rows[chosen].max(0)
    else:  # the k-th largest of the blocks' largest bounds the k-th of all from below
        top = tops[chosen].max(0)
        bound = np.partition(top, -k)[-k] if len(top) > k else least
        blocks = np.flatnonzero((top >= bound) & (top > least))
        places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        places = places[places < rows.shape[1]]
        found = rows[chosen][:, places].max(0)
    kept = found > least
    if len(found) > k:
        kept &= found >= np.partition(found, -k)[-k]
    return places[kept], found[kept]
