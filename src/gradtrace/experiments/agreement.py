"""Does the order of influence agree with the order of ablation damage?

Damage is counted in training samples to the full model's best held-out loss: more samples, more damage. Models
that never reach it are damaged most; models that need the same number, or never reach it, are told apart by their
final perplexity. With three components there are six orders, so agreement by chance is one in six.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    """Two orders, most first, ties joined by " = ".

    Attributes:
        spearman: rank correlation with ties averaged; nan where it is undefined.
        verdict: "agree", "disagree", "undecided" (ties, but nothing contrary) or "nothing to compare".
    """

    influence: str
    damage: str
    spearman: float
    n: int
    verdict: str


def damage_keys(ablations: Sequence[Ablation]) -> dict[str, tuple[float, float]]:
    """Give each component's damage as something that sorts: (samples, final perplexity)."""
    return {a.component: (math.inf if a.samples is None else float(a.samples), a.perplexity) for a in ablations}


def compare(influence: Mapping[str, float], ablations: Sequence[Ablation]) -> Agreement:
    """Compare the order of influence with the order of damage."""
    names = [a.component for a in ablations]
    keys = damage_keys(ablations)
    by_influence = ranks([(influence[n],) for n in names])
    by_damage = ranks([keys[n] for n in names])
    known = len(names) > 1 and not any(math.isnan(influence[n]) for n in names)
    verdict = _verdict(by_influence, by_damage) if known else "nothing to compare"
    rho = spearman(by_influence, by_damage) if known else math.nan
    return Agreement(_order(names, by_influence), _order(names, by_damage), rho, len(names), verdict)


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


def sentence(agreement: Agreement, ablations: Sequence[Ablation]) -> str:
    """Say in one sentence how the two orders compare, whatever the answer."""
    if agreement.verdict == "nothing to compare":
        why = "only one component took part" if agreement.n < 2 else "no trace reached the shared embedding"
        return f"Influence and ablation damage cannot be compared, since {why}."
    said = {
        "agree": "agreed with",
        "disagree": "did not agree with",
        "undecided": "neither agreed nor disagreed, ties apart, with",
    }[agreement.verdict]
    missed = sum(a.samples is None for a in ablations)
    rho = "undefined" if math.isnan(agreement.spearman) else f"{agreement.spearman:.2f}"
    never = {0: "every ablated model", len(ablations): "no ablated model"}.get(
        missed, f"{len(ablations) - missed} of {len(ablations)} ablated models"
    )
    return (
        f"The order of influence ({agreement.influence}) {said} the order of ablation damage ({agreement.damage}): "
        f"Spearman {rho}, n = {agreement.n}, one seed; {never} reached the full model's reference loss."
    )
