"""What semirings say of a group of parameters, in plain data: `gradtrace trace --semiring …` writes it as JSON.

An element for each scalar is too much to read, so each parameter gets a few numbers. They describe its *live*
scalars, those that have a path to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .ask import ask
from .components import Component, select_leaves
from .semirings import Entropy, Family, Graded, SignedMax, Through
from .semirings.power import Norm
from .semirings.ranked import Strongest
from .tape import Value
from .trace import Trace

Row: TypeAlias = dict[str, Any]


def answers(trace: Trace, semirings: Sequence[Family], of: str, components: Sequence[Component]) -> list[Row]:
    """Answer for each semiring: its name, and `rows`, one for each parameter (`TopK`: for each path).

    Args:
        of: a glob over parameter names.
        components: what `Graded` and `Through` split by, where they don't say.
    """
    leaves = select_leaves(trace.tape.record, of)
    asked = [_by(k, components) for k in semirings]
    found = _numbers(trace, leaves, asked)
    return [
        {"semiring": k.name, "rows": _rows(trace, k, leaves, numbers)} for k, numbers in zip(asked, found, strict=True)
    ]


def _by(semiring: Family, components: Sequence[Component]) -> Family:
    if isinstance(semiring, Graded) and semiring.by is None:
        return replace(semiring, by=tuple(components))
    if isinstance(semiring, Through) and semiring.components is None:
        return replace(semiring, components=tuple(components))
    return semiring


def in_parts(semiring: Family) -> bool:
    """Tell whether a semiring answers with numbers to be shown as they are, not as log2."""
    return isinstance(semiring, (Graded, Through)) or semiring in (Entropy, SignedMax)


def _numbers(trace: Trace, leaves: Sequence[Value], asked: Sequence[Family]) -> list[dict[int, Tensor]]:
    """Walk the tape once for what is shown as log2 and once for the rest."""
    out: list[dict[int, Tensor]] = [{} for _ in asked]
    for log2 in (True, False):
        chosen = [n for n, k in enumerate(asked) if in_parts(k) != log2 and not is_topk(k)]
        if chosen:
            found = ask(trace.tape.record, trace.loss, leaves, [asked[n] for n in chosen], log2=log2)
            for n, numbers in zip(chosen, found, strict=True):
                out[n] = numbers
    return out


def is_topk(semiring: Family) -> bool:
    """Tell whether a semiring's answer is paths."""
    return not isinstance(semiring, (Graded, Through)) and isinstance(semiring.carrier, Strongest)


def _rows(trace: Trace, semiring: Family, leaves: Sequence[Value], found: dict[int, Tensor]) -> list[Row]:
    if is_topk(semiring):
        return _paths(trace, semiring, leaves)
    rows = []
    for leaf in leaves:
        strength = trace.strength[str(leaf.name)].flatten()
        live = strength > -torch.inf
        row: Row = {"parameter": str(leaf.name), "scalars": leaf.numel, "live": int(live.sum())}
        numbers = found.get(leaf.id)
        if numbers is not None and row["live"]:
            parts = numbers.reshape(-1, leaf.numel)[:, live]  # parts × live scalars
            row |= _summary(semiring, parts, strength[live])
        rows.append(row)
    return rows


def _paths(trace: Trace, semiring: Family, leaves: Sequence[Value]) -> list[Row]:
    k = int(semiring.name.split(":")[1])
    paths = trace.paths([str(leaf.name) for leaf in leaves], k=k)
    return [
        {"parameter": p.start, "index": list(p.index), "log2_weight": p.log2_weight, "components": list(p.components)}
        for p in paths
    ]


def _summary(semiring: Family, parts: Tensor, strength: Tensor) -> Row:
    """Describe the numbers of one parameter's live scalars."""
    if isinstance(semiring, Graded):
        return {"spectrum": parts.abs().sum(1).tolist()}
    if isinstance(semiring, Through):
        return {"components": _through(semiring, parts)}
    if semiring is SignedMax:
        return {"most_positive": float(parts[0].max()), "most_negative": float(parts[1].min())}
    row = {"mean": float(parts.mean()), "median": float(parts.median()), "max": float(parts.max())}
    if semiring is Entropy:
        return row
    row = {f"log2_{name}": value for name, value in row.items()}
    if isinstance(semiring.carrier, Norm):
        gap = (parts[0] - strength).clamp(min=0)
        row |= {"gap_median": float(gap.median()), "gap_max": float(gap.max())}
    return row


def _through(semiring: Through, parts: Tensor) -> list[Row]:
    through, around = parts.abs().sum(1).reshape(2, -1).tolist()
    names = map(str, semiring.components or ())
    return [
        {"component": name, "through": a, "around": b, "share": a / (a + b) if a + b else None}
        for name, a, b in zip(names, through, around, strict=True)
    ]


def lines(answer: Row) -> list[str]:
    """Write an answer for the terminal, a line for each row."""
    return [f"{answer['semiring']}:", *(f"  {_line(row)}" for row in answer["rows"])]


def _line(row: Row) -> str:
    cells = [str(row["parameter"]) + ("" if "index" not in row else str(row["index"]))]
    for key, value in row.items():
        if isinstance(value, float):
            cells.append(f"{key} {value:.4g}")
        elif key == "spectrum":
            total = sum(value) or 1.0
            cells.append(" ".join(f"{n}:{part / total:.1%}" for n, part in enumerate(value)))
        elif key == "components" and value and isinstance(value[0], dict):
            cells.append(", ".join(f"{c['component']} {c['share'] or 0:.1%}" for c in value))
    return "  ".join(cells)
