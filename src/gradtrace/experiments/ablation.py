"""Which components are left out in turn, and what that cost: the dip against the influence, over seeds.

The *dip* of a run is how much its held-out loss lies above the full model's of the same seed, on average over training
(the area between the two curves, divided by the steps). It is a number for every run, where samples to reach something
are not: who does not reach it is censored. Who does without more components has more to do without, whatever their
influence: so the two orders of leaving out, least and most influential first, are compared at equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from ..queries.forest import FIRST
from .intervals import SHARE, interval

ORDERED_BY = (FIRST, "share")  # the influence by which components are left out one after the other
DIRECTIONS = ("least", "most")
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run: its seed, and the components that it goes without."""

    seed: int
    absent: tuple[str, ...] = ()


def planned_runs(options: Mapping[str, Any], components: Sequence[str], runs: Sequence[Run]) -> list[Planned]:
    """List all runs, in order; the orders of a seed whose full model is not done yet are those of its traces so far."""
    planned = []
    for seed in range(options["seed"], options["seed"] + options["seeds"]):
        full = next((run for run in runs if run["seed"] == seed), None)
        sets = dict.fromkeys(_absent_sets(options["ablate"], components, order_of(full, components)))
        planned += [Planned(seed), *(Planned(seed, absent) for absent in sets)]
    return planned


def _absent_sets(ablate: str, components: Sequence[str], order: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Give the sets to leave out; without all of its components a model would have no way to the output."""
    sizes = range(1, len(components))
    if not sizes:
        return
    yield from combinations(components, 1)
    if ablate == "cumulative":
        for size in sizes:
            yield from (in_order(chain[:size], components) for chain in (order, order[::-1]))
    if ablate == "all":
        for size in sizes:
            yield from combinations(components, size)


def in_order(names: Sequence[str], components: Sequence[str]) -> tuple[str, ...]:
    """Put some components into the order in which they were named."""
    return tuple(name for name in components if name in names)


def order_of(full: Run | None, components: Sequence[str]) -> list[str]:
    """Order components by influence, the least influential first; equal ones as they were named."""
    shares = shares_of(full["traces"], *ORDERED_BY) if full else {}
    known = {name: share for name, share in shares.items() if not math.isnan(share)}
    return sorted(components, key=lambda name: known.get(name, 0.0))


def shares_of(traces: Sequence[Mapping[str, Any]], kind: str, measure: str) -> dict[str, float]:
    """Average each component's influence over traces; nan where no path leads to the loss."""
    found: dict[str, list[float]] = {}
    for trace in traces:
        for row in trace["influence"]:
            if row["kind"] == kind:
                found.setdefault(row["component"], []).append(math.nan if row[measure] is None else row[measure])
    return {name: sum(shares) / len(shares) for name, shares in found.items()}


@dataclass(frozen=True)
class Seed:
    """The runs of one seed.

    Attributes:
        full: of all components.
        others: by the components that were left out.
        shares: each component's influence.
        order: the components, the least influential first.
        reference: the loss to reach; None where a score is to be reached instead.
    """

    full: Run
    others: Mapping[tuple[str, ...], Run]
    shares: Mapping[str, float]
    order: Sequence[str]
    reference: float | None

    def influence(self, absent: Sequence[str]) -> float:
        """Sum the influence of some components."""
        return sum(self.shares.get(name, math.nan) for name in absent)

    def chain(self, direction: str, size: int) -> tuple[str, ...]:
        """Name the `size` least or most influential components."""
        return in_order((self.order if direction == "least" else self.order[::-1])[:size], self.full["components"])

    def dip(self, absent: tuple[str, ...]) -> float:
        """Give how much was lost without them: nats, on average over training."""
        return mean_loss(self.others[absent]) - mean_loss(self.full)


def seeds_of(runs: Sequence[Run], components: Sequence[str], solved: float | None) -> list[Seed]:
    """Split runs by their seeds, in which the full model comes first."""
    found = []
    for full in (run for run in runs if not run["absent"]):
        others = {tuple(run["absent"]): run for run in runs if run["seed"] == full["seed"] and run["absent"]}
        reference = min(e["loss"] for e in full["evaluations"]) if solved is None else None
        shares = shares_of(full["traces"], *ORDERED_BY)
        found.append(Seed(full, others, shares, order_of(full, components), reference))
    return found


def mean_loss(run: Run) -> float:
    """Average the held-out loss over training: the area under its curve, by trapezia, divided by the steps."""
    evaluations = run["evaluations"]
    if len(evaluations) == 1:
        return evaluations[0]["loss"]
    areas = [(b["step"] - a["step"]) * (a["loss"] + b["loss"]) / 2 for a, b in pairwise(evaluations)]
    return sum(areas) / (evaluations[-1]["step"] - evaluations[0]["step"])


def samples_of(run: Run, reference: float | None, solved: float | None) -> int | None:
    """Give the sequences that were trained on until the reference loss, or the score that is called solved."""
    reached = (
        e["samples"] for e in run["evaluations"] if (e["loss"] <= reference if solved is None else e["score"] >= solved)
    )
    return next(reached, None)


def outcome(runs: Sequence[Run], seeds: Sequence[Seed], solved: float | None) -> dict[str, Any]:
    """Say what became of a model, over seeds: `samples` only if all of them got there."""
    samples = [samples_of(run, seed.reference, solved) for run, seed in zip(runs, seeds, strict=True)]
    reached = [s for s in samples if s is not None]
    last = [run["evaluations"][-1] for run in runs]
    best = [min(e["perplexity"] for e in run["evaluations"]) for run in runs]
    said = {
        "parameters": runs[0]["parameters"],
        "samples": round(sum(reached) / len(reached)) if len(reached) == len(samples) else None,
        "reached": len(reached),
        "seeds": len(runs),
        "best_perplexity": sum(best) / len(best),
        "final_perplexity": sum(e["perplexity"] for e in last) / len(last),
        "mean_loss": interval([mean_loss(run) for run in runs]),
    }
    return said | {key: interval([e[key] for e in last], SHARE) for key in ("score", "beyond") if key in last[0]}


def ablation_table(runs: Sequence[Run], components: Sequence[str], ablate: str, solved: float | None) -> dict[str, Any]:
    """Say for every set of components when the models without it got there, and what was lost."""
    seeds = seeds_of(runs, components, solved)
    sets = dict.fromkeys(absent for seed in seeds for absent in seed.others)
    rows = [_without(absent, seeds, solved) for absent in sorted(sets, key=len)]
    table = {
        "full": outcome([seed.full for seed in seeds], seeds, solved),
        "rows": [{"component": row["absent"][0]} | row for row in rows if len(row["absent"]) == 1],
        "sets": rows,
        "cumulative": _cumulative(seeds, len(components), solved) if ablate != "each" and sets else None,
    }
    if solved is None:
        losses = [min(e["loss"] for e in seed.full["evaluations"]) for seed in seeds]
        perplexities = [min(e["perplexity"] for e in seed.full["evaluations"]) for seed in seeds]
        table["reference_loss"] = sum(losses) / len(losses)
        table["reference_perplexity"] = sum(perplexities) / len(perplexities)
    return table


def _without(absent: tuple[str, ...], seeds: Sequence[Seed], solved: float | None) -> dict[str, Any]:
    """Say what became of the models without a set, over the seeds in which it was left out."""
    which = [seed for seed in seeds if absent in seed.others]
    return {"absent": list(absent)} | _cost([(seed, absent) for seed in which], solved)


def _cost(left_out: Sequence[tuple[Seed, tuple[str, ...]]], solved: float | None) -> dict[str, Any]:
    """Say what leaving out one set in each of several seeds cost, and what influence it had."""
    seeds = [seed for seed, _ in left_out]
    return {
        "influence": interval([seed.influence(absent) for seed, absent in left_out], SHARE),
        "dip": interval([seed.dip(absent) for seed, absent in left_out]),
    } | outcome([seed.others[absent] for seed, absent in left_out], seeds, solved)


def _cumulative(seeds: Sequence[Seed], components: int, solved: float | None) -> dict[str, Any]:
    """Leave out the least influential first, then the next, and the most influential first beside it."""
    table: dict[str, Any] = {"orders": [{"seed": seed.full["seed"], "order": list(seed.order)} for seed in seeds]}
    for direction in DIRECTIONS:
        table[direction] = [
            {"removed": size} | _cost([(seed, seed.chain(direction, size)) for seed in seeds], solved)
            for size in range(1, components)
        ]
    difference = interval([_extra(seed, range(1, components)) for seed in seeds])
    return table | {"difference": difference, "sentence": said_of(difference)}


def _extra(seed: Seed, sizes: range) -> float:
    """Give how much more it cost to leave out the most influential first, on average over how many were left out."""
    gaps = [seed.dip(seed.chain("most", size)) - seed.dip(seed.chain("least", size)) for size in sizes]
    return sum(gaps) / len(gaps)


def said_of(difference: Mapping[str, Any]) -> str:
    """Put the difference between the two orders of leaving out into a sentence, whatever it is."""
    mean, low, high, n = (difference[key] for key in ("mean", "low", "high", "n"))
    lead = (
        f"Where the most influential were left out first, the dip was {abs(mean):.3f} nats "
        f"{'smaller' if mean < 0 else 'greater'} than where the least influential were, on average over the numbers "
        "left out"
    )
    if low is None:
        return f"{lead} (one seed: nothing is known of its error)."
    verdict = (
        "influence foretold the dip"
        if low > 0
        else "influence foretold the contrary"
        if high < 0
        else "not told apart from no difference, a null result"
    )
    return f"{lead} (95 % interval of the difference {low:+.3f} to {high:+.3f}, {n} seeds): {verdict}."
