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


def strongest(forest: Forest, leaves: Sequence[Value], k: int) -> list[tuple[float, int, int]]:
    """Find the k scalars of some leaves with the strongest paths, strongest first; of equals the first.

    Returns:
        (log2 of the weight, number of the leaf, flat index), fewer where there are not so many.
    """
    found = [(log2, n, flat) for n, leaf in enumerate(leaves) for log2, flat in _of_leaf(forest, leaf, k)]
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    return found[:k]


def _of_leaf(forest: Forest, leaf: Value, k: int) -> list[tuple[float, int]]:
    if not k or not leaf.numel:
        return []
    plane = forest.compact.planes.get(leaf.id) if forest.compact is not None else None
    if plane is not None:
        weight = _over_rows(plane.data)
        flat = _largest(weight, k)
        flat = flat[(weight[flat] > 0).numpy()]
        log2 = (weight[flat].to(torch.float64).log2() + plane.exponent).numpy()
    else:
        every = forest.log2[leaf.id] if leaf.id in forest.log2 else torch.full((1, leaf.numel), -torch.inf)
        weight = _over_rows(every)
        flat = _largest(weight, k)
        log2 = weight[flat].numpy()
    order = np.lexsort((flat, -log2))[:k]
    pairs = zip(log2[order].tolist(), flat[order].tolist(), strict=True)
    return [(value, at) for value, at in pairs if value > -math.inf]


def _over_rows(plane: Tensor) -> Tensor:
    """Give the largest of each scalar's rows, flat."""
    return (plane[0] if len(plane) == 1 else plane.amax(0)).reshape(-1)


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
