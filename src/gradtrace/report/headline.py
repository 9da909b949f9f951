"""What a report says first: plain sentences, computed from its data, with what they do not prove."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..queries.forest import FIRST
from ..queries.group_names import listed
from .words import percent


def of_competition(results: Mapping[str, Any]) -> list[str]:
    """Say who carries most of the embedding's gradient, and whether ablation agreed."""
    rows = [r for r in results["influence"] if r["kind"] == FIRST and known(r["share"])]
    if not rows:
        return ["Nothing has been traced yet, or no path reached the embedding."]
    rows.sort(key=lambda r: -r["share"])
    others = "".join(f"{r['component']} {percent(r['share'])}, " for r in rows[1:])[:-2]
    times = f"average of {rows[0]['traces']} traces during training" if rows[0]["traces"] > 1 else "one trace"
    seeds = results.get("options", {}).get("seeds", 1)
    times += f" of {seeds} seeds" if seeds > 1 else ""
    last = _at_last(results, rows[0]["component"]) if seeds == 1 else ""
    said = [
        f"{rows[0]['component']} carries most: {percent(rows[0]['share'])} of the greedy paths from the shared "
        f"embedding cross it ({'; '.join(part for part in (others, times, last) if part)})."
    ]
    if not results["complete"]:
        return [*said, "The run is not finished, so there is no ablation to compare with yet."]
    cumulative = (results.get("ablation") or {}).get("cumulative")
    return (
        said + _verdict(results["agreement"], rows[0]["component"]) + ([cumulative["sentence"]] if cumulative else [])
    )


def _at_last(results: Mapping[str, Any], component: str) -> str:
    """Give the last trace's share, where there were several: it is what the views show at first."""
    traces = results["runs"][0]["traces"] if results.get("runs") else []
    if len(traces) < 2:
        return ""
    rows = [r for r in traces[-1]["influence"] if (r["kind"], r["component"]) == (FIRST, component)]
    return f"{percent(rows[0]['share'])} in the last one"


def known(share: float | None) -> bool:
    """Tell whether a share exists."""
    return share is not None and not math.isnan(share)


def _verdict(agreement: Mapping[str, Any], top: str) -> list[str]:
    row = agreement["rows"][0]
    if row["verdict"] == "nothing to compare":
        return [agreement["sentence"]]
    worst = row["damage"].split(" > ")[0]
    first = f"both put {top} first" if worst == top else f"what hurt most to leave out was {worst}, not {top}"
    orders = f"by influence {row['influence']}; by damage when left out {row['damage']} ({first})."
    said = {
        "agree": f"Ablation agreed: {orders}",
        "disagree": f"Ablation did not agree on the order: {orders}",
        "undecided": f"Ablation neither agreed nor disagreed, because of ties: {orders}",
    }[row["verdict"]]
    rho = "is undefined" if not known(row["spearman"]) else f"is {row['spearman']:.2f}"
    chance, several = math.factorial(row["n"]), row.get("seeds", 1)
    if known(row.get("spearman_low")):
        rho += f" (95 % interval {row['spearman_low']:.2f} to {row['spearman_high']:.2f})"
    seeds = "one seed" if several == 1 else f"{several} seeds"
    caution = f"Spearman's rank correlation {rho} with n = {row['n']} components and {seeds}"
    proves = "which proves little either way" if row["n"] * several < 8 else f"{seeds} being {_draws(several)}"
    return [said, f"{caution}, {proves}: two orders of {row['n']} are equal by chance one time in {chance:,}."]


def _draws(seeds: int) -> str:
    return "one draw" if seeds == 1 else f"{seeds} draws"


def of_trace(snapshot: Mapping[str, Any], influence: Sequence[Mapping[str, Any]] | None = None) -> list[str]:
    """Say what a snapshot found, and of which components nothing can be said.

    Args:
        influence: rows that say so, where they are not the snapshot's own.
    """
    rows = snapshot["influence"] if influence is None else influence
    unseen = list(dict.fromkeys(r["component"] for r in rows if not r.get("seen", True)))
    said = [finding["text"] for finding in snapshot.get("findings", ())]
    if connected := snapshot.get("connected"):
        said.append(f"Examples are connected at {listed(connected)}: a path of one can cross others there.")
    if unseen:
        own = "its" if len(unseen) == 1 else "their"
        said.append(f"Nothing can be said of {listed(unseen)}: none of {own} calls was seen.")
    return said or ["An older version made this, which did not look for what stands out."]


def of_history(traces: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the last trace of a training run found, and what moved most since the first."""
    first, last = traces[0], traces[-1]
    begin, *said = of_trace(last)
    if len(traces) == 1:
        return [f"At step {last['step']}, the only one traced so far: {begin}", *said]
    before = {_key(r): r["share"] for r in first["influence"]}
    rows = [r for r in last["influence"] if known(r["share"]) and known(before.get(_key(r)))]
    moved = max(rows, key=lambda r: abs(r["share"] - before[_key(r)]), default=None)
    lead = f"At step {last['step']}, the last of {len(traces)} traces: {begin}"
    if moved is None:
        return [lead, *said]
    was, now = percent(before[_key(moved)]), percent(moved["share"])
    if was == now:
        return [lead, *said, f"No component's share is another than at step {first['step']}."]
    change = f"its share went from {was} to {now}"
    return [lead, *said, f"Since step {first['step']} {moved['component']} moved most: {change}."]


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["of"], row["kind"], row["component"]
