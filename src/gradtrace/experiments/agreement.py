"""Does the order of influence agree with the order of ablation damage?

Damage is counted in training samples to the full model's best held-out loss: more samples, more damage. Models
that never reach it are damaged most; models that need the same number, or never reach it, are told apart by their
final perplexity. With three components there are six orders, so agreement by chance is one in six.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .intervals import CORRELATION, interval

GOAL = "reached the full model's reference loss"


@dataclass(frozen=True)
class Ablation:
    """What happened without one component.

    Attributes:
        samples: windows trained on until the held-out loss was the reference or lower; None if never.
        perplexity: held-out, after the last step.
    """

    component: str
    samples: int | None
    perplexity: float


@dataclass(frozen=True)
class Agreement:
    """Two orders, most first, ties joined by " = "; over several seeds, those of the mean ranks.

    Attributes:
        spearman: rank correlation with ties averaged, the mean over the seeds; nan where it is undefined.
        spearman_low, spearman_high: its interval, cut at −1 and 1; None with one seed.
        n: components.
        verdict: "agree", "disagree", "undecided" (ties, but nothing contrary) or "nothing to compare".
    """

    influence: str
    damage: str
    spearman: float
    n: int
    verdict: str
    seeds: int = 1
    spearman_low: float | None = None
    spearman_high: float | None = None


def damage_keys(ablations: Sequence[Ablation]) -> dict[str, tuple[float, float]]:
    """Give each component's damage as something that sorts: (samples, final perplexity)."""
    return {a.component: (math.inf if a.samples is None else float(a.samples), a.perplexity) for a in ablations}


def compare(influence: Mapping[str, float], ablations: Sequence[Ablation]) -> Agreement:
    """Compare the order of influence with the order of damage."""
    return compare_seeds([(influence, ablations)])


def compare_seeds(seeds: Sequence[tuple[Mapping[str, float], Sequence[Ablation]]]) -> Agreement:
    """Compare the two orders within each seed, and their mean ranks over the seeds."""
    names = [a.component for a in seeds[0][1]]
    influences = [ranks([(influence[n],) for n in names]) for influence, _ in seeds]
    damages = [ranks([damage_keys(ablations)[n] for n in names]) for _, ablations in seeds]
    by_influence, by_damage = _mean_ranks(influences), _mean_ranks(damages)
    known = len(names) > 1 and not any(math.isnan(influence[n]) for influence, _ in seeds for n in names)
    verdict = _verdict(by_influence, by_damage) if known else "nothing to compare"
    rhos = [spearman(a, b) if known else math.nan for a, b in zip(influences, damages, strict=True)]
    rho = interval(rhos, CORRELATION)
    orders = _order(names, by_influence), _order(names, by_damage)
    return Agreement(*orders, rho["mean"], len(names), verdict, len(seeds), rho["low"], rho["high"])


def _mean_ranks(several: Sequence[Sequence[float]]) -> list[float]:
    return [sum(of_one) / len(several) for of_one in zip(*several, strict=True)]


def ranks(values: Sequence[tuple[float, ...]]) -> list[float]:
    """Rank from the smallest, 1, upwards; equal values share the mean of their ranks.

    >>> ranks([(3.0,), (1.0,), (3.0,)])
    [2.5, 1.0, 2.5]
    """
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Give the correlation of two lists of ranks; nan where one of them is all ties."""
    mean = (len(a) + 1) / 2
    over = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    under = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return over / under if under else math.nan


def _verdict(a: Sequence[float], b: Sequence[float]) -> str:
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    products = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs]
    if any(p < 0 for p in products):
        return "disagree"
    ties_differ = any((a[i] == a[j]) != (b[i] == b[j]) for i, j in pairs)
    return "undecided" if ties_differ or all(p == 0 for p in products) else "agree"


def _order(names: Sequence[str], rank: Sequence[float]) -> str:
    levels = sorted(set(rank), reverse=True)
    return " > ".join(" = ".join(n for n, r in zip(names, rank, strict=True) if r == level) for level in levels)


def sentence(agreement: Agreement, ablations: Sequence[Ablation], goal: str = GOAL) -> str:
    """Say in one sentence how the two orders compare, whatever the answer; `ablations` are those of all seeds."""
    if agreement.verdict == "nothing to compare":
        why = "only one component took part" if agreement.n < 2 else "no trace reached the shared embedding"
        return f"Influence and ablation damage cannot be compared, since {why}."
    said = {
        "agree": "agreed with",
        "disagree": "did not agree with",
        "undecided": "neither agreed nor disagreed, ties apart, with",
    }[agreement.verdict]
    missed = sum(a.samples is None for a in ablations)
    never = {0: "every ablated model", len(ablations): "no ablated model"}.get(
        missed, f"{len(ablations) - missed} of {len(ablations)} ablated models"
    )
    return (
        f"The order of influence ({agreement.influence}) {said} the order of ablation damage ({agreement.damage}): "
        f"Spearman {_said_rho(agreement)}; {never} {goal}."
    )


def _said_rho(agreement: Agreement) -> str:
    rho = "undefined" if math.isnan(agreement.spearman) else f"{agreement.spearman:.2f}"
    if agreement.seeds == 1:
        return f"{rho}, n = {agreement.n}, one seed"
    low, high = agreement.spearman_low, agreement.spearman_high
    error = "" if low is None or high is None else f" (95 % interval {low:.2f} to {high:.2f})"
    return f"{rho}{error}, n = {agreement.n} components, {agreement.seeds} seeds"
