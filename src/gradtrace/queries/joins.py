"""Joins: where branches come together again, and by which of them the traces of a group of parameters come.

One row a junction. A share is of the traces that had a choice there, so a junction's shares add up to one, and
parameters inside a branch are not asked about it. Like all that is read off backpointers, shares depend on the basis in
which activations are written: rotate a residual stream, undo it in the next weights, and the function is the same, the
shares are not. What a branch's part of the gradient is says `signed`, whose norms do not depend on it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadArgument
from ..recording.components import select_leaves
from ..recording.record import Record, Value
from .branch_names import Names
from .forest import Forest
from .group_names import group_named
from .join_counts import Counts, count
from .join_parts import parts
from .join_rows import Branch, Grid, Join, grids_of
from .join_text import WIDTH, html_of, labels_of, text_of
from .junctions import junctions
from .plots import draw_grid

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class JoinTable:
    """The joins that the traces of a group of parameters meet, in the order of the program.

    Attributes:
        paths: all traces of the group.
        examples: how many examples; 1 where the batch was traced as a whole.
        of_all: how many parameters there are in all.
        weight: of all traces, in the unit of the rows' weights.
    """

    kind: str
    of: tuple[str, ...]
    rows: tuple[Join, ...]
    paths: float
    examples: int = 1
    of_all: int = 0
    weight: float = math.nan

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a branch, as a pandas DataFrame."""
        import pandas

        keys = ("home", "operator", "fork", "call", "source")
        rows = [
            {k: getattr(join, k) for k in keys} | {"branch": branch.name} | _without_name(branch)
            for join in self.rows
            for branch in join.branches
        ]
        return pandas.DataFrame(rows)

    def grids(self) -> tuple[Grid, ...]:
        """Fold joins of repeated blocks: layers down, branches across."""
        return self._grids

    @cached_property
    def _grids(self) -> tuple[Grid, ...]:
        return tuple(grids_of(self.rows))

    def plot(self, ax: Axes | None = None, *, pattern: str | None = None) -> Axes:
        """Draw one grid with matplotlib (`pip install 'gradtrace[draw]'`), on these axes or new ones.

        Args:
            pattern: the grid's; by default that of the grid to which most paths come.

        Raises:
            BadArgument: there is no such grid, or no matplotlib.
        """
        grids = [g for g in self.grids() if pattern in (None, g.pattern)]
        if not grids:
            there = ", ".join(dict.fromkeys(repr(g.pattern) for g in self.grids())) or "none"
            raise BadArgument(f"no joins at {pattern!r}; there are {there}")
        grid = max(grids, key=lambda g: sum(j.paths for j in g.joins))
        where = f" in {grid.pattern}" if grid.pattern else ""
        title = f"{grid.title}{where}: % of the paths that had a choice"
        return draw_grid(grid.shares(), labels_of(grid.joins), grid.branches, title, ax)

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self.kind} joins of {group_named(self.of, self.of_all)}", WIDTH)
        lines.append(f"{self.paths:,.0f} paths; shares in % of those that had a choice at the join")
        if not self.rows:
            lines.append("no path had a choice: no two branches come together on the way")
        return "\n".join([*lines, *text_of(self.grids())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(f"{self.kind} joins of {group_named(self.of, self.of_all)}", self.grids())


class Places:
    """The junctions on the way to a loss, each of which is named once, however many tables it stands in."""

    def __init__(self, record: Record, loss: Value) -> None:
        self.all = junctions(record, loss)
        self.named = cache(Names(record).of)


def joins(
    forest: Forest,
    of: str | Sequence[str] = "*",
    *,
    by_example: bool = False,
    signed: bool = False,
    places: Places | None = None,
) -> JoinTable:
    """Tabulate the junctions at which traces of a group of parameters had a choice.

    Args:
        of: a glob over parameter names, or several.
        by_example: count each example's traces apart, too; of a forest that tells them apart.
        signed: give the norm of each branch's part of the gradient, too; a walk or two for each join.
        places: the junctions, where somebody knows them.
    """
    (table,) = joins_of(forest, [of], by_example=by_example, signed=signed, places=places)
    return table


def joins_of(
    forest: Forest,
    groups: Sequence[str | Sequence[str]],
    *,
    by_example: bool = False,
    signed: bool = False,
    places: Places | None = None,
) -> list[JoinTable]:
    """Give a table for each of several groups, in one pass; otherwise as `joins`."""
    places = places or Places(forest.record, forest.loss)
    sets = [select_leaves(forest.record, of) for of in groups]
    counted = count(forest, places.all, sets, by_example=by_example)
    return [
        _table(forest, leaves, counts, places, by_example=by_example, signed=signed)
        for leaves, counts in zip(sets, counted, strict=True)
    ]


def _table(
    forest: Forest, leaves: Sequence[Value], counts: Counts, places: Places, *, by_example: bool, signed: bool
) -> JoinTable:
    total, weight_of_all = counts.total.sum(0).tolist()
    rows, met = [], [(j, came) for j, came in zip(places.all, counts.came, strict=True) if came[:, :, 0].any()]
    measured = parts(forest.record, forest.loss, [j for j, _ in met], leaves) if signed else [None] * len(met)
    for (junction, came), of_branches in zip(met, measured, strict=True):
        named = places.named(junction)
        each = tuple(_branches(named.branches, one) for one in came) if by_example else ()
        whole, call = _branches(named.branches, came.sum(0)), junction.call
        if of_branches is not None:
            whole = tuple(replace(b, norm=n, along=a) for b, (n, a) in zip(whole, of_branches, strict=True))
        paths, weight = came.sum((0, 1)).tolist()
        operator = "heads" if junction.heads else call.title
        where = named.home, operator, named.fork, call.index, call.source
        rows.append(Join(*where, paths, paths / total, whole, named.modules, each, named.near, weight))
    examples = forest.labels.count if forest.labels is not None else 1
    named = tuple(str(v.name) for v in leaves)
    return JoinTable(forest.kind, named, tuple(rows), total, examples, len(forest.record.leaves), weight_of_all)


def _branches(names: Sequence[str], came: np.ndarray) -> tuple[Branch, ...]:
    paths, weight = came.sum(0).tolist()
    return tuple(
        Branch(name, own, own / paths if paths else math.nan, heavy / weight if weight else math.nan)
        for name, (own, heavy) in zip(names, came.tolist(), strict=True)
    )


def _without_name(branch: Branch) -> dict[str, float]:
    fields = asdict(branch)
    del fields["name"]
    return fields
