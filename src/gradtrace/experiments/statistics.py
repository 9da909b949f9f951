"""Rank correlation within architectures, and what is known about it: intervals, tests, ceilings, Shapley values.

Everything is an array of units × components, a unit being one architecture under one seed, beside an array that says
which architecture a unit is of. Infinity stands for a censored number of samples: behind all others, tied with its
like. Nothing here says that a predictor causes a damage; and a mean of 0 may hide some architectures of each sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
FEWEST = 6  # architectures: of fewer, a bootstrap makes intervals that are far too narrow
SEED = 16


@dataclass(frozen=True)
class Estimate:
    """A mean over architectures.

    Attributes:
        low, high: its 95 % interval, by bootstrap of architectures; nan where there are fewer than `FEWEST`.
        p: of the hypothesis that it is 0, by flipping the signs of architectures; two-sided, uncorrected.
        count: how many architectures have a value.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int


def ranks(values: Floats) -> Floats:
    """Rank within each row, from 1; ties share their mean rank, and a row with a nan has none.

    >>> ranks(np.array([[3.0, np.inf, 1.0, np.inf]])).tolist()
    [[2.0, 3.5, 1.0, 3.5]]
    """
    from scipy.stats import rankdata

    return rankdata(values, axis=1, nan_policy="propagate").astype(np.float64)


def correlation(a: Floats, b: Floats) -> Floats:
    """Give Pearson's correlation of each row of `a` with that of `b`; nan where one of them is constant."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-9, (a * b).sum(1) / size, np.nan)


def spearman(a: Floats, b: Floats) -> Floats:
    """Give Spearman's correlation of each row of `a` with that of `b`; nan where one of them is all ties."""
    return correlation(ranks(a), ranks(b))


def by_architecture(values: Floats, architecture: NDArray[np.int64]) -> Floats:
    """Average over each architecture's units that have a value: one number each, in order; nan if none has."""
    known = ~np.isnan(values)
    _, which = np.unique(architecture, return_inverse=True)
    counts = np.bincount(which[known], minlength=which.max(initial=-1) + 1)
    sums = np.bincount(which[known], values[known], minlength=len(counts))
    with np.errstate(invalid="ignore"):
        return sums / counts


def estimate(values: Floats, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the mean of what architectures have, those without a value left out."""
    from scipy.stats import bootstrap, permutation_test

    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else math.nan
    if not len(values):
        return Estimate(mean, math.nan, math.nan, math.nan, 0)
    if np.ptp(values) < 1e-12:  # scipy would not have it
        p = 2.0 ** (1 - len(values)) if abs(mean) > 1e-12 else 1.0
        end = mean if len(values) >= FEWEST else math.nan
        return Estimate(mean, end, end, p, len(values))
    found = bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(SEED), batch=1000
    ).confidence_interval
    low, high = (float(x) if len(values) >= FEWEST else math.nan for x in (found.low, found.high))
    flipped = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(SEED),
    )
    return Estimate(mean, low, high, float(flipped.pvalue), len(values))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for how many there are (Holm, 1979); nan, a test that could not be made, counts as 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = np.nan_to_num(np.asarray(p, np.float64), nan=1.0)
    order = np.argsort(known, kind="stable")
    steps = known[order] * np.arange(len(known), 0, -1)
    corrected = np.empty(len(known))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def of_kind(values: Floats, kinds: NDArray[Any], architecture: NDArray[np.int64]) -> Floats:
    """Say which rank to expect of each component by its kind alone, from what is known of the other architectures.

    Kinds have strengths (Bradley and Terry, 1952), fitted to who ranks before whom in the other architectures, and an
    expected rank is 1 and the probabilities of ranking behind each of the rivals there are. A mean rank would not do:
    who ranks behind weak rivals is not strong.
    """
    _, unit = np.unique(architecture, return_inverse=True)
    names, kind = np.unique(kinds, return_inverse=True)
    kind = kind.reshape(values.shape)
    ranked = ranks(values)  # where ∞ is ∞'s equal
    order = np.sign(ranked[:, :, None] - ranked[:, None, :])
    wins = np.zeros((unit.max(initial=0) + 1, len(names), len(names)))
    known = ~np.isnan(order) & ~np.eye(values.shape[1], dtype=bool)
    rows, first, second = np.nonzero(known)
    np.add.at(wins, (unit[rows], kind[rows, first], kind[rows, second]), (order[rows, first, second] + 1) / 2)
    strength = np.take_along_axis(_strengths(wins.sum(0) - wins)[unit], kind, 1)  # units × components
    behind = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))
    return np.round(0.5 + behind.sum(2), 6)  # its half against itself makes 1 of it; rounded, so that ties stay ties


def _strengths(wins: Floats, ridge: float = 0.5) -> Floats:
    """Fit log strengths to how often each won over each, by Newton's method; `ridge` keeps them finite.

    Several fits at once: fits × kinds × kinds → fits × kinds.
    """
    strength, games = np.zeros(wins.shape[:2]), wins + wins.swapaxes(1, 2)
    for _ in range(50):
        p = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))
        slope = (wins - games * p).sum(2) - ridge * strength
        curve = games * p * (1 - p)
        hessian = (curve.sum(2) + ridge)[:, :, None] * np.eye(wins.shape[1]) - curve
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        strength = strength + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return strength


def without_kind(predictor: Floats, damage: Floats, kinds: NDArray[Any], architecture: NDArray[np.int64]) -> Floats:
    """Correlate ranks less those to be expected of the components' kinds, over all units together.

    Each unit gives its part of the one correlation: what is left in a unit may be next to nothing, and then counts as
    little. The mean of the parts is the correlation; nan where predictor or damage is all ties.
    """
    a, b = (ranks(v) - of_kind(v, kinds, architecture) for v in (predictor, damage))
    both = ~np.isnan(spearman(predictor, damage))
    a, b = np.where(both[:, None], a, 0.0), np.where(both[:, None], b, 0.0)
    size = math.sqrt((a * a).sum() * (b * b).sum()) / max(int(both.sum()), 1)
    return np.where(both, (a * b).sum(1) / (size or math.nan), np.nan)


def ceiling(damage: Floats, architecture: NDArray[np.int64]) -> Floats:
    """Correlate one seed's damage with another's: for each architecture the mean over pairs of its units."""
    found = []
    for number in np.unique(architecture):
        rows = damage[architecture == number]
        first, second = np.triu_indices(len(rows), 1)
        rho = spearman(rows[first], rows[second]) if len(first) else np.array([np.nan])
        found.append(rho[~np.isnan(rho)].mean() if (~np.isnan(rho)).any() else np.nan)
    return np.array(found)


def shapley(value: Callable[[int], float], count: int) -> list[float]:
    """Give each of `count` players' exact Shapley value, from the value of every set (bit i is player i), ∅ included.

    >>> shapley(lambda bits: float(bits == 3), 2)  # only both together
    [0.5, 0.5]
    """
    weight = [math.factorial(n) * math.factorial(count - n - 1) / math.factorial(count) for n in range(count)]
    return [
        sum(
            weight[bits.bit_count()] * (value(bits | 1 << player) - value(bits))
            for bits in range(1 << count)
            if not bits >> player & 1
        )
        for player in range(count)
    ]


def in_turn(says: Sequence[float], loss: Callable[[int], float]) -> float:
    """Say how much worse it is to leave out what is said to matter most first, rather than last.

    One component after the other is left out, until one is left; the mean loss on the way, most first less least
    first, over what the best of all orders would make of it: 1 is the best order, 0 no better than chance, -1 the
    worst. Of equal ones, all orders are averaged. nan where the order makes no difference.
    """
    count = len(says)
    means = {order: _mean_on_the_way(order, loss, count) for order in permutations(range(count))}
    gaps = {order: means[order[::-1]] - means[order] for order in means}
    best = max(gaps.values())
    told = [gap for order, gap in gaps.items() if all(says[a] <= says[b] for a, b in pairwise(order))]
    return sum(told) / len(told) / best if told and best > 0 else math.nan


def _mean_on_the_way(order: Sequence[int], loss: Callable[[int], float], count: int) -> float:
    left = accumulate(order[:-1], lambda there, bit: there & ~(1 << bit), initial=2**count - 1)
    return sum(loss(there) for there in islice(left, 1, None)) / (count - 1)


def roc_area(score: Floats, true: NDArray[np.bool_]) -> float:
    """Give the probability that a score of what is true is above one of what is not, ties counting half."""
    from scipy.stats import mannwhitneyu

    if true.all() or not true.any():
        return math.nan
    return float(mannwhitneyu(score[true], score[~true]).statistic) / (int(true.sum()) * int((~true).sum()))
