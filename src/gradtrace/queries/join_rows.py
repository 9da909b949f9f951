"""Rows of a table of joins, and how those of repeated blocks are put together in grids."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .branch_names import AROUND
from .group_names import listed

COMMON = frozenset((AROUND, "gate"))  # branches that different joins of a module have


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
        near: the module call next to it inside the home: in which it is, or "after" which it comes; else "".
        weight: of all its paths, in a unit of the table's own.
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
    near: str = ""
    weight: float = math.nan

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
class Grid:
    """Joins of one kind: those of a block that repeats, or one alone.

    Attributes:
        pattern: their homes, with a star for the numbers in which they differ.
        branches: all names of branches, in the order in which they come up.
        title: the operator, and of what where there are several grids of that pattern.
    """

    pattern: str
    operator: str
    branches: tuple[str, ...]
    joins: tuple[Join, ...]
    title: str = ""

    def shares(self) -> np.ndarray:
        """Give joins × branches; nan where a join has no such branch, or no trace had a choice."""
        named = [{b.name: b.share for b in join.branches} for join in self.joins]
        return np.array([[shares.get(name, math.nan) for name in self.branches] for shares in named])


def pattern_of(name: str) -> str:
    """Put stars for the numbers of layers, and leave those of calls out.

    >>> pattern_of("encoder.layer.3.output"), pattern_of("layer1.0"), pattern_of("cell:2")
    ('encoder.layer.*.output', 'layer*.*', 'cell')
    """
    return re.sub(r"\d+", "*", re.sub(r":\d+", "", name))


def kind_of(branch: str) -> str:
    """Do so for a branch, whose words may have numbers of their own.

    >>> kind_of("conv1 → conv2"), kind_of("layer.3.conv1")
    ('conv1 → conv2', 'layer.*.conv1')
    """
    return re.sub(r"(?<![a-zA-Z_])\d+", "*", re.sub(r":\d+", "", branch))


def grids_of(rows: Iterable[Join]) -> list[Grid]:
    """Put joins together whose homes differ in numbers alone, and that have a branch in common besides "around"."""
    grids: list[tuple[str, str, list[Join], set[str]]] = []
    for join in rows:
        pattern, named = pattern_of(join.home), {kind_of(b.name) for b in join.branches}
        telling = (named - COMMON) or named
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
        out.append(Grid(members[0].home if alone else pattern, operator, tuple(names), tuple(members), operator))
    return _titled(out)


def _titled(grids: Sequence[Grid]) -> list[Grid]:
    """Tell apart the grids that have one pattern and operator: by their branches, and by a number if that is not it."""
    places = [(g.pattern, g.operator) for g in grids]
    named = [
        replace(g, title=f"{g.operator} of {listed(g.branches, 'and', 2)}") if places.count(place) > 1 else g
        for g, place in zip(grids, places, strict=True)
    ]
    titles, out = [(g.pattern, g.title) for g in named], []
    for n, (grid, title) in enumerate(zip(named, titles, strict=True)):
        number = f" ({titles[: n + 1].count(title)})" if titles.count(title) > 1 else ""
        out.append(replace(grid, title=grid.title + number))
    return out


def _alike(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Name branches as those of other layers are, if that tells them apart."""
    for shorter in (kind_of, lambda name: re.sub(r":\d+", "", name)):
        names = [shorter(b.name) for b in branches]
        if len(set(names)) == len(names):
            return tuple(replace(b, name=name) for b, name in zip(branches, names, strict=True))
    return tuple(branches)
