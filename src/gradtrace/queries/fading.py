"""Findings of gradients that fall, or grow, from one layer to the one before: vanishing and exploding gradients.

What one path weighs says little of that, since more paths come together the more layers there are. So gradients are
compared, of which a greedy trace knows the absolute values: those of parameters of one name and shape, layer by layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..recording.record import Record
from .departures import given_by
from .findings import Finding, steadily
from .forest import Forest

LEAST = 4  # layers that are compared
FAR = 10.0  # log2 of the first's gradient over the last's
STEADY = 0.8  # of the pairs of layers, that say the same
FARTHEST = 2.0**-450, 2.0**450  # numbers whose squares, and their sums, a float holds


def of_fading(forest: Forest) -> list[Finding]:
    """Say of which layers the gradients fall, or grow, all the way from the last to the first, and by how much.

    Of several kinds of parameters of which that can be said, the one in the middle.
    """
    if forest.kind != "greedy":
        return []
    found = [(log2, names) for names in repeated(forest.record) for log2 in [_levels(forest, names)] if _moves(log2)]
    if not found:
        return []
    log2, names = sorted(found, key=lambda pair: abs(pair[0][-1] - pair[0][0]))[(len(found) - 1) // 2]
    first, last = log2[0], log2[-1]
    each = 2 ** (abs(last - first) / (len(log2) - 1))
    word, fold = ("fall", "smaller") if first < last else ("grow", "larger")
    own = ", of each example's own" if forest.labels is not None else ""
    text = (
        f"Gradients {word} from layer to layer on the way back: of {names[-1]} they are 2^{last:.0f}, of {names[0]} "
        f"2^{first:.0f} (root mean squares{own}), about {each:.2g} times {fold} at each of {len(names) - 1} steps."
    )
    return [Finding("fading", text, (), first - last, len(names), 0.97)]


def repeated(record: Record) -> list[list[str]]:
    """Name parameters of one name and shape that a number tells apart, in the order of their numbers.

    Vectors are left out: biases and scales have gradients of another size.
    """
    alike: dict[tuple[str, str, tuple[int, ...]], dict[int, str]] = {}
    for name, leaf in record.leaves.items():
        for number in re.finditer(r"\d+", name) if len(leaf.shape) > 1 else ():
            key = name[: number.start()], name[number.end() :], leaf.shape
            alike.setdefault(key, {})[int(number[0])] = name
    return [[of[n] for n in sorted(of)] for of in alike.values() if len(of) >= LEAST]


def _levels(forest: Forest, names: Sequence[str]) -> list[float]:
    """Give log2 of the root mean square of each parameter's gradient; nothing where one has none."""
    given = [given_by(forest, forest.record.leaves[name]) for name in names]
    found = [-math.inf if g is None else g.of + root_mean_square(g.planes[0]) for g in given]
    return found if all(map(math.isfinite, found)) else []


def root_mean_square(numbers: Tensor) -> float:
    """Give log2 of the root mean square of some numbers, none of them negative.

    >>> import torch
    >>> small = torch.tensor([2.0**-1000, 0.0], dtype=torch.float64)
    >>> root_mean_square(torch.tensor([8.0, 8.0])), root_mean_square(small)
    (3.0, -1000.5)
    """
    unit, norm = 1.0, torch.linalg.vector_norm(numbers, dtype=torch.float64).item()
    if not FARTHEST[0] < norm < FARTHEST[1] and numbers.numel():  # squares beyond a float
        unit = numbers.max().item() or 1.0
        norm = torch.linalg.vector_norm(numbers.double() / unit, dtype=torch.float64).item()
    return math.log2(unit) + math.log2(norm) - 0.5 * math.log2(numbers.numel()) if norm else -math.inf


def _moves(log2: Sequence[float]) -> bool:
    """Tell whether levels fall far, or rise, at nearly every step."""
    return bool(log2) and abs(log2[-1] - log2[0]) >= FAR and steadily(log2, STEADY)
