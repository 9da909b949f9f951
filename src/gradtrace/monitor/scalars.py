"""The few numbers of a trace that go to other programs' dashboards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MAIN = "best"


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Give a trace's numbers by name, without those that do not exist.

    Names: gradtrace/COMPONENT/share, for greedy traces gradtrace/COMPONENT/share_greedy; gradtrace/dead_share; and
    gradtrace/entropy, in bits, the mean over scalars that have a path.

    >>> row = {"kind": "best", "component": "rnn", "share": 0.25, "dead_share": 0.5}
    >>> scalars_of({"influence": [row], "semirings": []})
    {'gradtrace/rnn/share': 0.25, 'gradtrace/dead_share': 0.5}
    """
    found: dict[str, float | None] = {}
    for row in line["influence"]:
        suffix = "" if row["kind"] == MAIN else f"_{row['kind']}"
        found[f"gradtrace/{row['component']}/share{suffix}"] = row["share"]
        found.setdefault(f"gradtrace/dead_share{suffix}", row["dead_share"])
    for answer in line["semirings"]:
        if answer["semiring"] == "entropy":
            found["gradtrace/entropy"] = _mean(answer["rows"])
    dead = {name: found.pop(name) for name in list(found) if name.startswith("gradtrace/dead_share")}
    return {name: value for name, value in (found | dead).items() if value is not None and math.isfinite(value)}


def _mean(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Average over live scalars."""
    known = [(row["live"], row["mean"]) for row in rows if row["live"]]
    total = sum(live for live, _ in known)
    return sum(live * mean for live, mean in known) / total if total else None
