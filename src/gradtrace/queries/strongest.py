"""The scalars with the strongest paths, found without a logarithm of every weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..recording.record import Value
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
    found = [(log2, n, flat) for n, leaf in enumerate(leaves) for log2, flat in _of_leaf(forest, leaf, k, example)]
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    return found[:k]


def _of_leaf(forest: Forest, leaf: Value, k: int, example: int | None) -> list[tuple[float, int]]:
    if not k or not leaf.numel:
        return []
    weight, exponent = _weights(forest, leaf, example)
    flat = _largest(weight, k)
    if exponent is None:
        log2 = weight[flat].numpy()
    else:
        flat = flat[(weight[flat] > 0).numpy()]
        log2 = (weight[flat].to(torch.float64).log2() + exponent).numpy()
    order = np.lexsort((flat, -log2))[:k]
    pairs = zip(log2[order].tolist(), flat[order].tolist(), strict=True)
    return [(value, at) for value, at in pairs if value > -math.inf]


def _weights(forest: Forest, leaf: Value, example: int | None) -> tuple[Tensor, int | None]:
    """Give the weight of each scalar's path, flat, 0 where there is none, and their exponent; or its log2, and None."""
    plane = forest.compact.weights.get(leaf.id) if forest.compact is not None else None
    if plane is not None:
        return _over_rows(plane.data, example), plane.exponent
    every = forest.log2[leaf.id] if leaf.id in forest.log2 else torch.full((1, leaf.numel), -torch.inf)
    return _over_rows(every, example), None


def _over_rows(rows: Tensor, example: int | None) -> Tensor:
    """Give the largest of each scalar's rows, or one of them, flat."""
    if len(rows) == 1:
        return rows[0].reshape(-1)
    return (rows.amax(0) if example is None else rows[example]).reshape(-1)


def of_all_strengths(forest: Forest, leaf: Value, k: int) -> list[int]:
    """Choose k scalars of a leaf that have a path, from the strongest to the weakest at even steps (flat indices).

    Of a large leaf a part of the scalars is looked at, at even steps too.
    """
    if not k:
        return []
    step = max(1, leaf.numel // SAMPLED)
    every, exponent = _weights(forest, leaf, None)
    weight = every[::step]
    live = (weight > (-math.inf if exponent is None else 0)).nonzero().reshape(-1)
    order = live[weight[live].argsort(descending=True, stable=True)]
    chosen = order[torch.linspace(0, max(0, len(order) - 1), min(k, len(order))).round().long()]
    return (chosen * step).tolist()


def _largest(weight: Tensor, k: int) -> np.ndarray:
    """Give the places of the k largest, and of what is as large as the last of them, in rising order."""
    n = len(weight)
    if n <= k:
        return np.arange(n)
    blocks = n // BLOCK
    if blocks > 2 * k:  # the k-th largest of the blocks' largest bounds the k-th of all from below
        least = weight[: blocks * BLOCK].reshape(blocks, BLOCK).amax(1).topk(k).values[-1]
        places = (weight >= least).numpy().nonzero()[0]
        kept = weight[places]
    else:
        places, kept = np.arange(n), weight
    if len(places) <= k:
        return places
    return places[(kept >= kept.topk(k).values[-1]).numpy()]
