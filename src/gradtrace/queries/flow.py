"""Flow: how many traces run through every operator call, and from call to call and module to module.

Each leaf scalar sends one unit, or its path weight, along its trace. The counts say where paths go, not how much of
the gradient does: many weak paths count as much as many strong ones unless weighted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import starmap
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ..errors import BadArgument
from ..recording.components import select_leaves
from .departures import Hop, given_by
from .forest import Forest
from .markup import table_of
from .plots import draw_bars
from .units import Grouping, Went, stream

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FlowRow:
    """How many traces run through one operator call."""

    call: int
    operator: str
    module: str
    source: str
    paths: float
    share: float


@dataclass(frozen=True)
class FlowEdge:
    """How many traces step from one operator call, or leaf, to the next.

    Attributes:
        source: the index of a call, or the name of a leaf; `target`: the index of a call.
    """

    source: int | str
    target: int
    paths: float


@dataclass(frozen=True)
class Link:
    """How many traces step from one module call (or leaf) to another."""

    source: str
    target: str
    paths: float


class OfExample(NamedTuple):
    """One example's own flow: the units that reach the loss, and those along each edge of the flow of all."""

    total: float
    along: Sequence[float]


@dataclass(frozen=True)
class Flow:
    """One unit (or the path weight) from every leaf scalar, pushed along its trace.

    Attributes:
        calls: units through each operator call, in recording order.
        links: units from one module call, or leaf, into another.
        total: all units that reach the loss.
        edges: units from one operator call, or leaf, into the next.
        unit: log2 of the weight that one unit stands for; 0 where every path counts as one.
        weighted: whether paths count by their weights.
        by_example: each example's own flow, in the unit of all, where that was asked for.
    """

    kind: str
    total: float
    calls: tuple[FlowRow, ...]
    links: tuple[Link, ...]
    edges: tuple[FlowEdge, ...] = ()
    unit: float = 0.0
    weighted: bool = False
    by_example: tuple[OfExample, ...] = ()

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row an operator call, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.calls])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it with matplotlib (`pip install 'gradtrace[draw]'`), on these axes or new ones, and give the axes."""
        most = sorted(self.links, key=lambda link: -link.paths)[:20]
        names = [f"{link.source or '(top)'} → {link.target or '(top)'}" for link in most]
        return draw_bars(
            names, [link.paths / (self.total or 1) for link in most], f"share of the {self.kind} paths", ax
        )

    def __str__(self) -> str:
        lines = [f"{self.kind} flow: {self.total:g} paths; most used links between modules"]
        most = sorted(self.links, key=lambda k: -k.paths)[:20]
        whole = self.total or 1
        lines += [f"  {k.paths / whole:>7.1%}  {k.source or '(top)'} → {k.target or '(top)'}" for k in most]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        most = sorted(self.links, key=lambda k: -k.paths)[:20]
        rows = [[k.source or "(top)", k.target or "(top)", f"{k.paths / (self.total or 1):.1%}"] for k in most]
        title = f"{self.kind} flow: {self.total:g} paths; most used links between modules"
        return table_of(title, ["from", "to", "share"], rows, text=2)


@dataclass(frozen=True)
class Asked:
    """Which flow is wanted: from which leaves, one unit each or their weight."""

    of: str | Sequence[str] = "*"
    weighted: bool = False


def flow(forest: Forest, of: str | Sequence[str] = "*", *, weighted: bool = False) -> Flow:
    """Push one unit, or with `weighted` the path weight over the largest, from every leaf scalar to the loss."""
    return flows(forest, [Asked(of, weighted)])[0]


def flows(forest: Forest, asked: Sequence[Asked], *, by_example: bool = False) -> list[Flow]:
    """Compute several flows in one pass: leaves that are in the same ones send as one group.

    Args:
        by_example: give each example's own, too; of a forest that tells them apart.
    """
    record = forest.record
    chosen = [{v.id for v in select_leaves(record, a.of)} for a in asked]
    weighted = any(a.weighted for a in asked)
    leaves = [v for v in record.leaves.values() if any(v.id in ids for ids in chosen)]
    names = [str(v.name) for v in leaves]
    given = {n: found for n, v in enumerate(leaves) if v is not forest.loss and (found := given_by(forest, v))}
    tops = {n: found.top if weighted else -math.inf for n, found in given.items()}
    member_of = {n: tuple(leaves[n].id in ids for ids in chosen) for n in given}
    groups = list(dict.fromkeys(member_of.values()))
    bases = [_base(tops[n] for n in given if member_of[n] == group) for group in groups]
    examples = forest.labels.count if by_example and forest.labels is not None else 1
    units = stream(forest)
    for n, found in given.items():
        group = groups.index(member_of[n])
        units.leave(leaves[n], n - len(leaves), found, _grouping(group * examples, examples > 1), bases[group])
    for call in record.calls:
        for value in call.outputs:
            if value is not None and value is not forest.loss:
                units.send_on(value)
    hops, amounts = _between_calls(forest, units.found(), len(groups) * examples)
    amounts = amounts.reshape(len(hops), len(groups), examples, 2)
    out, last = [], -1 if forest.loss.call is None else forest.loss.call.index
    for number, a in enumerate(asked):
        own = [g for g, group in enumerate(groups) if group[number]]
        top = max([tops[n] for n in given if member_of[n][number]], default=-math.inf)
        unit = top if a.weighted and top > -math.inf else 0.0
        # the base of a group in which nothing has a weight means nothing
        scale = [2.0 ** min(max(bases[g] - unit, -2000.0), 1.0) for g in own]
        chosen = amounts[:, own]
        # pairs × examples
        through = np.einsum("pge,g->pe", chosen[..., 1], np.array(scale)) if a.weighted else chosen[..., 0].sum(1)
        whole = through.sum(1)
        named, along = _named(hops, whole.tolist(), names), through[whole != 0]
        ends = np.array([target == last for _, target, _ in named], bool)
        each = [OfExample(float(n[ends].sum()), n.tolist()) for n in along.T] if by_example else ()
        out.append(replace(_flow(forest, named, unit), weighted=a.weighted, by_example=tuple(each)))
    return out


def _named(hops: Sequence[Hop], through: Sequence[float], names: Sequence[str]) -> list[tuple[int | str, int, float]]:
    """Give what went along each pair of calls, or leaf and call; leaves count from -len(names) up."""
    return [(names[s] if s < 0 else s, t, n) for (s, t), n in zip(hops, through, strict=True) if n]


def _grouping(first: int, apart: bool) -> Grouping:
    """Send what each example does as a group of its own, numbered from the first on; or all as one."""
    return lambda row, call: first + (row if apart else 0)


def _between_calls(forest: Forest, went: Sequence[Went], groups: int) -> tuple[list[Hop], np.ndarray]:
    """Give the pairs of calls, or leaf and call, in rising order, and what went along: pairs × groups × 2."""
    if not went:
        return [], np.zeros((0, groups, 2))
    source, edge, group = np.array([found[:3] for found in went]).T
    target = np.searchsorted(forest.edges.first, edge, side="right") - 1
    hops, number = np.unique(np.stack([source, target], 1), axis=0, return_inverse=True)
    amounts = np.zeros((len(hops), groups, 2))
    np.add.at(amounts, (number.reshape(-1), group), np.array([found[3:] for found in went]))
    return [tuple(hop) for hop in hops.tolist()], amounts


def merged(found: Sequence[Flow], scales: Sequence[float] | None = None) -> Flow:
    """Add up flows of different examples through one program.

    Args:
        scales: what a weight in each flow counts; 1 by default.

    Raises:
        BadArgument: the programs took different ways: one call of theirs is not the same.
    """
    known: dict[int, FlowRow] = {}
    for row in (row for flow in found for row in flow.calls):
        other = known.setdefault(row.call, row)
        if (other.operator, other.module, other.source) != (row.operator, row.module, row.source):
            raise BadArgument(
                f"these flows are of programs that took different ways: call {row.call} is {other.operator} "
                f"({other.source}) in one, and {row.operator} ({row.source}) in another. Compare their links"
            )
    unit = max(flow.unit for flow in found)
    scales = scales if scales is not None and found[0].weighted else [1.0] * len(found)
    factors = [2.0 ** max(-2000.0, f.unit - unit) * by for f, by in zip(found, scales, strict=True)]
    total = math.fsum(f.total * by for f, by in zip(found, factors, strict=True))
    through = _summed([[(r.call, r.paths) for r in f.calls] for f in found], factors)
    edges = _summed([[((e.source, e.target), e.paths) for e in f.edges] for f in found], factors)
    links = _summed([[((k.source, k.target), k.paths) for k in f.links] for f in found], factors)
    return Flow(
        found[0].kind,
        total,
        tuple(replace(known[n], paths=through[n], share=through[n] / total if total else 0.0) for n in sorted(known)),
        tuple(starmap(Link, ((*ends, paths) for ends, paths in links.items()))),
        tuple(starmap(FlowEdge, ((*ends, paths) for ends, paths in edges.items()))),
        unit,
        found[0].weighted,
    )


Key = TypeVar("Key")


def _summed(parts: Sequence[Sequence[tuple[Key, float]]], factors: Sequence[float]) -> dict[Key, float]:
    """Add up what goes along each edge, or through each call."""
    found: dict[Key, list[float]] = {}
    for part, factor in zip(parts, factors, strict=True):
        for key, paths in part:
            found.setdefault(key, []).append(paths * factor)
    return {key: math.fsum(amounts) for key, amounts in found.items()}


def _base(tops: Iterable[float]) -> float:
    """Give a power of two near the largest weight, over which the weights of a group are added up."""
    top = max(tops)
    return float(math.ceil(top)) if math.isfinite(top) else 0.0


def _flow(forest: Forest, along: Sequence[tuple[int | str, int, float]], unit: float) -> Flow:
    """Add up what went through each call, and between modules."""
    calls, through = forest.record.calls, [0.0] * len(forest.record.calls)
    links: dict[tuple[str, str], float] = {}
    for source, target, paths in along:
        through[target] += paths
        ends = source if isinstance(source, str) else calls[source].module, calls[target].module
        if ends[0] != ends[1]:
            links[ends] = links.get(ends, 0.0) + paths
    made = forest.loss.call
    total = through[made.index] if made is not None else 0.0
    rows = tuple(
        FlowRow(c.index, c.name, c.module, c.source, n, n / total if total else 0.0)
        for c, n in zip(calls, through, strict=True)
        if n
    )
    edges = tuple(starmap(FlowEdge, along))
    return Flow(forest.kind, total, rows, tuple(Link(s, t, n) for (s, t), n in links.items()), edges, unit)
