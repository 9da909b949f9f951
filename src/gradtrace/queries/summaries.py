"""What semirings say of a group of parameters, in plain data: `gradtrace trace --semiring …` writes it as JSON.

An element for each scalar is too much to read, so each parameter, and each layer, gets a few numbers. They describe
its *live* scalars, those that have a path to the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ..backward.several import ask
from ..recording.components import Component, select_leaves
from ..recording.record import Value
from ..semirings import Entropy, Family, Graded, SignedMax, Through
from ..semirings.base import Max, Sum
from ..semirings.graded import resolve
from ..semirings.power import Norm
from ..semirings.ranked import Strongest
from .paths import Path

Row: TypeAlias = dict[str, Any]
Numbers: TypeAlias = tuple[Tensor, Tensor]  # of live scalars: parts × scalars, and log2 of their best paths


class Answerable(Protocol):
    """The part of a `Trace` that answers read."""

    tape: Any
    root: Value

    @property
    def strength(self) -> Mapping[Any, Tensor]:
        """log2 weight of the best path of every scalar."""
        ...

    def paths(self, of: Any = ..., index: Any = ..., k: int = ...) -> list[Path]:
        """Find the k strongest paths."""
        ...


def answers(
    trace: Answerable,
    semirings: Sequence[Family],
    of: str | Sequence[str],
    components: Sequence[Component] | None = None,
) -> list[Row]:
    """Answer for each semiring: its name, `rows`, one for each parameter (`TopK`: for each path), and `layers`.

    A layer is the parameters of one module.

    Args:
        of: a glob over parameter names, or several.
        components: what `Graded` and `Through` split by, where they don't say; by default the outermost modules.
    """
    leaves = select_leaves(trace.tape.record, of)
    asked = [_by(trace, k, components) for k in semirings]
    found = _numbers(trace, leaves, asked)
    return [_answer(trace, k, leaves, numbers) for k, numbers in zip(asked, found, strict=True)]


def _by(trace: Answerable, semiring: Family, components: Sequence[Component] | None) -> Family:
    if isinstance(semiring, Graded):
        own = components if semiring.by is None else semiring.by
        return replace(semiring, by=tuple(resolve(trace.tape.record, own)))
    if isinstance(semiring, Through):
        own = components if semiring.components is None else semiring.components
        return replace(semiring, components=tuple(resolve(trace.tape.record, own)))
    return semiring


def in_parts(semiring: Family) -> bool:
    """Tell whether a semiring answers with numbers to be shown as they are, not as log2."""
    return isinstance(semiring, (Graded, Through)) or semiring in (Entropy, SignedMax)


def _numbers(trace: Answerable, leaves: Sequence[Value], asked: Sequence[Family]) -> list[dict[int, Tensor]]:
    """Walk the tape once for what is shown as log2 and once for the rest."""
    out: list[dict[int, Tensor]] = [{} for _ in asked]
    for log2 in (True, False):
        chosen = [n for n, k in enumerate(asked) if in_parts(k) != log2 and not is_topk(k)]
        if chosen:
            found = ask(trace.tape.record, trace.root, leaves, [asked[n] for n in chosen], log2=log2)
            for n, numbers in zip(chosen, found, strict=True):
                out[n] = numbers
    return out


def is_topk(semiring: Family) -> bool:
    """Tell whether a semiring's answer is paths."""
    return not isinstance(semiring, (Graded, Through)) and isinstance(semiring.carrier, Strongest)


def _answer(trace: Answerable, semiring: Family, leaves: Sequence[Value], found: dict[int, Tensor]) -> Row:
    said: Row = {"semiring": semiring.name}
    if is_topk(semiring):
        return said | {"rows": _paths(trace, semiring, leaves)}
    if isinstance(semiring, Graded):
        said |= {"base": semiring.semiring.name, "by": [str(c) for c in semiring.by or ()]}
    return said | {
        "rows": [{"parameter": str(leaf.name)} | _row(trace, semiring, [leaf], found) for leaf in leaves],
        "layers": [{"layer": name} | _row(trace, semiring, own, found) for name, own in _layers(leaves).items()],
    }


def _layers(leaves: Sequence[Value]) -> dict[str, list[Value]]:
    """Group parameters by the module that holds them; one that no module holds is alone."""
    out: dict[str, list[Value]] = {}
    for leaf in leaves:
        name = str(leaf.name)
        out.setdefault(name.rpartition(".")[0] or name, []).append(leaf)
    return out


def _live(trace: Answerable, leaf: Value, found: dict[int, Tensor]) -> Numbers | None:
    strength = trace.strength[str(leaf.name)].flatten()
    live = strength > -torch.inf
    return (found[leaf.id].reshape(-1, leaf.numel)[:, live], strength[live]) if live.any() else None


def _row(trace: Answerable, semiring: Family, leaves: Sequence[Value], found: dict[int, Tensor]) -> Row:
    known = [numbers for leaf in leaves if (numbers := _live(trace, leaf, found)) is not None]
    row: Row = {"scalars": sum(leaf.numel for leaf in leaves), "live": sum(len(s) for _, s in known)}
    if not known:
        return row
    return row | _summary(semiring, torch.cat([p for p, _ in known], 1), torch.cat([s for _, s in known]))


def _paths(trace: Answerable, semiring: Family, leaves: Sequence[Value]) -> list[Row]:
    k = int(semiring.name.split(":")[1])
    paths = trace.paths([str(leaf.name) for leaf in leaves], k=k)
    return [
        {"parameter": p.start, "index": list(p.index), "log2_weight": p.log2_weight, "components": list(p.components)}
        for p in paths
    ]


def _summary(semiring: Family, parts: Tensor, strength: Tensor) -> Row:
    """Describe the numbers of some live scalars: parts × scalars, and log2 of their best paths."""
    if isinstance(semiring, Graded):
        return _spectrum(semiring, parts)
    if isinstance(semiring, Through):
        return {"components": _through(semiring, parts)}
    if semiring is SignedMax:
        return {"most_positive": float(parts[0].max()), "most_negative": float(parts[1].min())}
    row = {"mean": float(parts.mean()), "median": float(parts.median()), "max": float(parts.max())}
    if semiring is Entropy:
        return row
    row = {f"log2_{name}": value for name, value in row.items()}
    return row | _gap(parts[0], strength) if isinstance(semiring.carrier, Norm) else row


def _gap(upper: Tensor, strength: Tensor) -> Row:
    """Compare upper bounds with the best paths: the strongest of all, and scalar by scalar."""
    strongest = float(strength.max())
    gap = (upper - strength).clamp(min=0)
    return {
        "log2_strongest": strongest,
        "gap": max(0.0, float(upper.max()) - strongest),
        "gap_median": float(gap.median()),
        "gap_max": float(gap.max()),
    }


def _spectrum(semiring: Graded, parts: Tensor) -> Row:
    """Add up the sizes of the parts; under `Sum` also what of them points along the gradient, which can be negative."""
    row: Row = {"spectrum": parts.abs().sum(1).tolist()}
    if semiring.semiring is Sum:
        row["along"] = (parts * parts.sum(0).sign()).sum(1).tolist()
    if semiring.semiring is Max:
        row["strongest"] = parts.amax(1).tolist()
    return row


def _through(semiring: Through, parts: Tensor) -> list[Row]:
    through, around = parts.abs().sum(1).reshape(2, -1).tolist()
    names = map(str, semiring.components or ())
    return [
        {"component": name, "through": a, "around": b, "share": a / (a + b) if a + b else None}
        for name, a, b in zip(names, through, around, strict=True)
    ]
