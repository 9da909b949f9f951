"""Joins: where branches come together again, and by which of them the traces of a group of parameters come.

One row a junction. A share is of the traces that had a choice there, so a junction's shares add up to one, and
parameters inside a branch are not asked about it. Like all that is read off backpointers, shares depend on the basis in
which activations are written: rotate a residual stream, undo it in the next weights, and the function is the same, the
shares are not. What a branch's part of the gradient is says `signed`, whose norms do not depend on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..recording.components import select_leaves
from .branch_names import AROUND, Names
from .forest import Forest
from .join_counts import count
from .join_parts import parts
from .join_text import html_of, text_of
from .junctions import Junction, junctions
from .plots import plot_joins

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Branch:
    """One way into a junction.

    Attributes:
        name: the modules, or operators, that it runs through; "around" where nothing is computed.
        paths: traces that come in by it, of those that had a choice.
        share: of all that do; nan where none does.
        weighted_share: the same, each counted by its path weight (best) or |∂ℓ/∂θ| (greedy).
        norm: where asked for, the Euclidean norm of the part of the gradient that comes in by it.
        along: how far that part goes along the sum of all parts: those of one join add up to 1.
    """

    name: str
    paths: float
    share: float
    weighted_share: float
    norm: float = math.nan
    along: float = math.nan


@dataclass(frozen=True)
class Join:
    """One place at which traces come together.

    Attributes:
        home: the innermost module that holds the junction and its branches, "" at the top.
        operator: what joins them, "add"; "heads" where a contraction joins the heads of attention.
        fork: what the branches come from.
        call: the number of the operator call.
        source: its line.
        paths: traces that had a choice here and come through; of heads, through attention.
        share: of all traces of the group.
        modules: whether a branch runs through a module, not through operators alone.
        by_example: where asked for, the same branches for each example.
    """

    home: str
    operator: str
    fork: str
    call: int
    source: str
    paths: float
    share: float
    branches: tuple[Branch, ...]
    modules: bool = True
    by_example: tuple[tuple[Branch, ...], ...] = ()

    @property
    def name(self) -> str:
        """Where it is, and what joins."""
        return f"{self.operator} in {self.home}" if self.home else self.operator

    def branch(self, name: str) -> Branch:
        """Find a branch by its name."""
        return next(b for b in self.branches if b.name == name)

    @property
    def around(self) -> float | None:
        """Give the share of the traces that go around; None where no branch does."""
        return next((b.share for b in self.branches if b.name == AROUND), None)


@dataclass(frozen=True)
class JoinTable:
    """The joins that the traces of a group of parameters meet, in the order of the program.

    Attributes:
        paths: all traces of the group.
        examples: how many examples; 1 where the batch was traced as a whole.
        of_all: how many parameters there are in all.
    """

    kind: str
    of: tuple[str, ...]
    rows: tuple[Join, ...]
    paths: float
    examples: int = 1
    of_all: int = 0

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
        return tuple(_grids(self.rows))

    def plot(self, ax: Axes | None = None, *, pattern: str | None = None) -> Axes:
        """Draw one grid with matplotlib (`pip install 'gradtrace[draw]'`), on these axes or new ones.

        Args:
            pattern: the grid's; by default that of the grid to which most paths come.

        Raises:
            BadArgument: there is no such grid, or no matplotlib.
        """
        return plot_joins(self, ax, pattern)

    def __str__(self) -> str:
        return text_of(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of(self)


@dataclass(frozen=True)
class Grid:
    """Joins of one kind: those of a block that repeats, or one alone.

    Attributes:
        pattern: their homes, with a star for the numbers in which they differ.
        branches: all names of branches, in the order in which they come up.
    """

    pattern: str
    operator: str
    branches: tuple[str, ...]
    joins: tuple[Join, ...]

    def shares(self) -> np.ndarray:
        """Give joins × branches; nan where a join has no such branch, or no trace had a choice."""
        named = [{b.name: b.share for b in join.branches} for join in self.joins]
        return np.array([[shares.get(name, math.nan) for name in self.branches] for shares in named])


def joins(
    forest: Forest,
    of: str | Sequence[str] = "*",
    *,
    by_example: bool = False,
    signed: bool = False,
    found: Sequence[Junction] | None = None,
) -> JoinTable:
    """Tabulate the junctions at which traces of a group of parameters had a choice.

    Args:
        of: a glob over parameter names, or several.
        by_example: count each example's traces apart, too; of a forest that tells them apart.
        signed: give the norm of each branch's part of the gradient, too; a walk or two for each join.
        found: the junctions, where somebody knows them.
    """
    leaves = select_leaves(forest.record, of)
    asked = list(junctions(forest.record, forest.loss) if found is None else found)
    counts = count(forest, asked, leaves, by_example=by_example)
    names, total = Names(forest.record), float(counts.total[:, 0].sum())
    rows, met = [], [(j, came) for j, came in zip(asked, counts.came, strict=True) if came[:, :, 0].any()]
    measured = parts(forest.record, forest.loss, [j for j, _ in met], leaves) if signed else [None] * len(met)
    for (junction, came), of_branches in zip(met, measured, strict=True):
        named = names.of(junction)
        each = tuple(_branches(named.branches, one) for one in came) if by_example else ()
        whole, call = _branches(named.branches, came.sum(0)), junction.call
        if of_branches is not None:
            whole = tuple(replace(b, norm=n, along=a) for b, (n, a) in zip(whole, of_branches, strict=True))
        paths = float(came[:, :, 0].sum())
        operator = "heads" if junction.heads else call.base.strip("_")
        where = named.home, operator, named.fork, call.index, call.source
        rows.append(Join(*where, paths, paths / total, whole, named.modules, each))
    examples = forest.labels.count if forest.labels is not None else 1
    named = tuple(str(v.name) for v in leaves)
    return JoinTable(forest.kind, named, tuple(rows), total, examples, len(forest.record.leaves))


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


def pattern_of(name: str) -> str:
    """Put stars for the numbers of layers and calls.

    >>> pattern_of("encoder.layer.3.output"), pattern_of("cell:2")
    ('encoder.layer.*.output', 'cell')
    """
    return re.sub(r"(?<![a-zA-Z_])\d+", "*", re.sub(r":\d+", "", name))


def _grids(rows: Iterable[Join]) -> list[Grid]:
    """Put joins together whose homes differ in numbers alone, and that have a branch in common besides "around"."""
    grids: list[tuple[str, str, list[Join], set[str]]] = []
    for join in rows:
        pattern, named = pattern_of(join.home), {pattern_of(b.name) for b in join.branches}
        telling = (named - {AROUND}) or named
        same = (g for g in grids if g[:2] == (pattern, join.operator) and g[3] & telling)
        grid = next(same, None)
        if grid is None:
            grids.append((pattern, join.operator, [join], telling))
        else:
            grid[2].append(join)
            grid[3].update(telling)
    out = []
    for pattern, operator, members, _ in grids:
        alone = len(members) == 1
        members = [m if alone else replace(m, branches=_alike(m.branches)) for m in members]
        names = dict.fromkeys(b.name for m in members for b in m.branches)
        out.append(Grid(members[0].home if alone else pattern, operator, tuple(names), tuple(members)))
    return out


def _alike(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Name branches as those of other layers are, if that tells them apart."""
    for shorter in (pattern_of, lambda name: re.sub(r":\d+", "", name)):
        names = [shorter(b.name) for b in branches]
        if len(set(names)) == len(names):
            return tuple(replace(b, name=name) for b, name in zip(branches, names, strict=True))
    return tuple(branches)
