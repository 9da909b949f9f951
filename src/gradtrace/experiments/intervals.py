"""Means over seeds with what is known of their error: Student's t at 95 %, which a handful of seeds is enough for.

It takes the seeds for independent draws of one normal distribution. With three of them an interval is wide; and it does
not say how a mean would come out on another task, width or optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

CONFIDENCE = 0.95
SHARE, CORRELATION = (0.0, 1.0), (-1.0, 1.0)


def interval(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Give the mean, the ends of its interval (None where there is one value), and how many values there are.

    Args:
        within: where values can lie at all; an interval is cut there.

    >>> interval([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.484..., 'high': 4.484..., 'n': 3}
    """
    n = len(values)
    mean = sum(values) / n
    if n == 1 or math.isnan(mean):
        return {"mean": mean, "low": None, "high": None, "n": n}
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * deviation / math.sqrt(n)
    return {"mean": mean, "low": max(mean - half, within[0]), "high": min(mean + half, within[1]), "n": n}


@lru_cache(maxsize=256)
def t_quantile(p: float, degrees: int) -> float:
    """Give the value that Student's t of so many degrees of freedom stays below with probability p, 1/2 ≤ p < 1.

    With t = √degrees · tan θ the density is that of cosᵈ⁻¹ θ, whose integral is taken in small steps.
    """
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (degrees - 1)
    below = np.concatenate(([0], np.cumsum((density[1:] + density[:-1]) / 2)))
    return math.sqrt(degrees) * math.tan(float(np.interp(p - 0.5, below / below[-1] / 2, angle)))
