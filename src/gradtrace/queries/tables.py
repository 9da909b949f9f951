"""Influence tables: rows of shares, what they were counted from, and sums of tables of different examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from ..errors import BadArgument
from ..recording.components import UNSEEN
from .group_names import group_named
from .markup import table_of
from .plots import draw_bars

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

SHOWN = 4  # lines at which examples are connected that a table names


@dataclass(frozen=True)
class Counts:
    """What the shares of a table are shares of, for some examples together; counts are whole numbers.

    Attributes:
        pairs: (example, scalar) pairs.
        live: those that have a trace.
        weight: the sum of their weights over 2^unit.
        crossing: by component, the traces that cross it.
        crossing_weight: by component, the sum of their weights over 2^unit.
    """

    pairs: float
    live: float
    weight: float
    unit: float
    crossing: tuple[float, ...]
    crossing_weight: tuple[float, ...]


@dataclass(frozen=True)
class InfluenceRow:
    """The influence of one component on a group of parameters.

    Attributes:
        share: traces that cross the component, of all (example, scalar) pairs that have one; nan if none has.
        weighted_share: the same, each pair counted by its path weight (best) or |∂ℓ/∂θ| (greedy).
        dead_share: pairs without a trace, of all pairs.
        examples: how many examples; 1 where the batch was traced as a whole.
        inside: whether parameters of the group live in the component, and so cross it trivially.
        seen: whether any call of the component was seen; if none was, its shares are nan: nobody can tell.
    """

    component: str
    share: float
    weighted_share: float
    dead_share: float
    examples: int
    inside: bool
    seen: bool = True


@dataclass(frozen=True)
class InfluenceTable:
    """Influence of components on a group of parameters.

    Attributes:
        connected: where examples are connected: there a number of the whole batch, or another example, enters an
            example's derivatives, and what is said of it by position is not what tracing it alone would give.
        counts: what the shares of `rows` are shares of.
        counts_by_example: the same for each of `by_example`.
        of_all: how many parameters there are in all.
    """

    kind: str
    of: tuple[str, ...]
    rows: tuple[InfluenceRow, ...]
    by_example: tuple[tuple[InfluenceRow, ...], ...] = ()
    connected: tuple[str, ...] = ()
    counts: Counts | None = field(default=None, repr=False, compare=False)
    counts_by_example: tuple[Counts, ...] = field(default=(), repr=False, compare=False)
    of_all: int = 0

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a component, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.rows])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it with matplotlib (`pip install 'gradtrace[draw]'`), on these axes or new ones, and give the axes."""
        rows = sorted((r for r in self.rows if not math.isnan(r.share)), key=lambda r: -r.share)
        label = f"share of the {self.kind} paths from {group_named(self.of, self.of_all)}"
        weighted = [r.weighted_share for r in rows]
        return draw_bars([r.component for r in rows], [r.share for r in rows], label, ax, weighted)

    def __str__(self) -> str:
        name = max([9, *(len(r.component) for r in self.rows)])
        lines = [f"{self.kind} influence on {group_named(self.of, self.of_all)}"]
        lines.append(f"{'component':<{name}}  {'share':>7}  {'weighted':>8}  {'dead':>7}  {'examples':>8}")
        for r in sorted(self.rows, key=lambda r: -r.share if r.share == r.share else 1):
            mark = "  (parameters inside)" if r.inside else ""
            mark += "" if r.seen else "  (not seen)"
            shares = f"{_percent(r.share):>7}  {_percent(r.weighted_share):>8}  {_percent(r.dead_share):>7}"
            lines.append(f"{r.component:<{name}}  {shares}  {r.examples:>8}{mark}")
        unseen = [r.component for r in self.rows if not r.seen]
        if unseen:
            lines.append(f"{', '.join(unseen)}: {UNSEEN}")
        if self.connected:
            more = len(self.connected) - SHOWN
            named = "; ".join(self.connected[:SHOWN]) + (f"; and {more} more lines" if more > 0 else "")
            lines.append(f"examples are connected, and use numbers of the batch, at {named}: shares are by position")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            [
                r.component + (" (parameters inside)" if r.inside else "") + ("" if r.seen else " (not seen)"),
                *map(_percent, (r.share, r.weighted_share, r.dead_share)),
                str(r.examples),
            ]
            for r in sorted(self.rows, key=lambda r: -r.share if r.share == r.share else 1)
        ]
        title = f"{self.kind} influence on {group_named(self.of, self.of_all)}"
        return table_of(title, ["component", "share", "weighted", "dead", "examples"], rows)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def rows_of(
    counts: Counts, names: Sequence[str], examples: int, inside: Sequence[bool], seen: Sequence[bool]
) -> tuple[InfluenceRow, ...]:
    """Write counts as a table's rows."""
    dead = 1 - counts.live / counts.pairs if counts.pairs else math.nan
    return tuple(
        InfluenceRow(
            name,
            counts.crossing[i] / counts.live if counts.live and seen[i] else math.nan,
            counts.crossing_weight[i] / counts.weight if counts.weight and seen[i] else math.nan,
            dead,
            examples,
            inside[i],
            seen[i],
        )
        for i, name in enumerate(names)
    )


def merged(tables: Sequence[InfluenceTable], scales: Sequence[float] | None = None) -> InfluenceTable:
    """Add up tables of different examples, which come in the order of the tables.

    Args:
        scales: what a weight in each table counts; 1 by default.
    """
    scales = scales or [1.0] * len(tables)
    names = list(dict.fromkeys(row.component for table in tables for row in table.rows))
    alike = [[row for table in tables for row in table.rows if row.component == name] for name in names]
    inside, seen = [any(r.inside for r in rows) for rows in alike], [any(r.seen for r in rows) for rows in alike]
    apart = [_scaled(c, t, names, by) for t, by in zip(tables, scales, strict=True) for c in _by_example(t)]
    counts = _added([_scaled(t.counts, t, names, by) for t, by in zip(tables, scales, strict=True)], len(names))
    examples = sum(t.rows[0].examples if t.rows else 0 for t in tables)
    return InfluenceTable(
        tables[0].kind,
        tuple(dict.fromkeys(name for t in tables for name in t.of)),
        rows_of(counts, names, examples, inside, seen),
        tuple(rows_of(c, names, 1, inside, seen) for c in apart),
        tuple(dict.fromkeys(where for t in tables for where in t.connected)),
        counts,
        tuple(apart),
        tables[0].of_all,
    )


def _by_example(table: InfluenceTable) -> Sequence[Counts]:
    """Give what a table counts of each example; that of a single one is that of all."""
    return table.counts_by_example or [counts for counts in (table.counts,) if counts is not None]


def _scaled(counts: Counts | None, table: InfluenceTable, names: Sequence[str], scale: float) -> Counts:
    """Put a table's counts in the order of some components, and scale its weights."""
    if counts is None:
        raise BadArgument("this table has no counts, so that it cannot be added to others: take it of trace.influence")
    at = {row.component: n for n, row in enumerate(table.rows)}

    def placed(numbers: Sequence[float], by: float = 1.0) -> tuple[float, ...]:
        return tuple(numbers[at[name]] * by if name in at else 0.0 for name in names)

    crossing, weights = placed(counts.crossing), placed(counts.crossing_weight, scale)
    return Counts(counts.pairs, counts.live, counts.weight * scale, counts.unit, crossing, weights)


def _added(parts: Sequence[Counts], components: int) -> Counts:
    """Add up counts, weights over the largest of their units."""
    unit = max((c.unit for c in parts), default=-math.inf)
    by = [1.0 if c.unit == unit else 2.0 ** max(-2000.0, c.unit - unit) for c in parts]
    return Counts(
        sum(c.pairs for c in parts),
        sum(c.live for c in parts),
        math.fsum(c.weight * f for c, f in zip(parts, by, strict=True)),
        unit,
        tuple(sum(c.crossing[i] for c in parts) for i in range(components)),
        tuple(math.fsum(c.crossing_weight[i] * f for c, f in zip(parts, by, strict=True)) for i in range(components)),
    )
