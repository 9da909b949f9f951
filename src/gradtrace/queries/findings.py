"""Findings: what stands out in a trace, as sentences that carry the cells of the tables that they are made of.

They are made of joins: what the paths of the earliest parameters do where they have a choice, which heads and experts
carry nothing, which layer differs from its siblings; and of what is dead. What every path must do is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from ..recording.record import Record, Value
from .branch_names import AROUND
from .forest import Forest
from .group_names import group_named, listed
from .join_rows import Grid, Join
from .join_text import cell, labels_of, stem_of
from .joins import JoinTable
from .junctions import CONTRACTIONS
from .units import live_scalars

NEARLY = 0.8  # from which share on a branch has it all
COMES = 0.05  # the least share of the paths at joins that are spoken of,
FEW = 10  # and how many paths of all parameters have to come
APART = 0.2  # how far a layer is from its siblings that differs from them
IDLE = 0.05  # of an even share, below which a head or an expert carries next to nothing
MOST = 7
DEAD = 0.5  # of a parameter's scalars
OPERATORS = {"sub": "difference", "add": "addition", "cat": "concatenation", "mul": "product", "bmm": "product"}
OPERATORS["addcmul"] = "gated sum"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        table: "early" or "all", the joins of the earliest or of all parameters, or "dead".
        row: the number of the join's call, or the parameter's name.
        column: the branch; "" where a row has one number.
        value: the share.
        paths: how many paths that is; 0 where paths are not what is counted.
    """

    table: str
    row: int | str
    column: str
    value: float
    paths: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A sentence, and what it is made of.

    Attributes:
        kind: "around", "through", "divided", "odd", "idle", "load", "dead", or "nothing".
        figure: the share that it gives, if it gives one: paths in `cells` over `paths`, or the cell's value.
        paths: what the figure is a share of.
        strength: how much it says, from 0 to 1.
    """

    kind: str
    text: str
    cells: tuple[Cell, ...] = ()
    figure: float = math.nan
    paths: float = 0.0
    strength: float = 1.0


def earliest(forest: Forest, dead: Mapping[str, float]) -> list[str]:
    """Name the parameters of the module that is used first, of those from which a path leads to the loss."""
    homes: dict[str, list[str]] = {}
    for leaf in _by_first_use(forest.record, forest.loss):
        homes.setdefault(str(leaf.name).rpartition(".")[0], []).append(str(leaf.name))
    living = (names for names in homes.values() if any(dead[n] < 1 for n in names))
    return next(living, list(forest.record.leaves))


def _by_first_use(record: Record, loss: Value) -> list[Value]:
    given = [i.value for call in record.before(loss) for i in call.inputs if i.value is not None]
    known = {v.id for v in record.leaves.values()}
    return list({v.id: v for v in given if v.id in known}.values())


def dead_shares(forest: Forest) -> dict[str, float]:
    """Give for each parameter the share of its scalars from which no path leads to the loss."""
    live = {name: live_scalars(forest, leaf) for name, leaf in forest.record.leaves.items()}
    count = {name: leaf.numel for name, leaf in forest.record.leaves.items()}
    return {n: 0.0 if not count[n] else 1.0 if of is None else 1 - int(of.sum()) / count[n] for n, of in live.items()}


def findings(early: JoinTable, whole: JoinTable, dead: Mapping[str, float]) -> tuple[Finding, ...]:
    """Say what stands out, the strongest first.

    Args:
        early: joins of the earliest parameters, or of others that somebody asks about.
        whole: joins of all parameters.
        dead: by parameter, as `dead_shares` gives.
    """
    group = group_named(early.of, early.of_all, shorten=True)
    found = [f for grid in early.grids() for f in _of_grid(_come(grid, COMES), Asked("early", group))]
    told = {(j.call, j.operator) for j in early.rows if j.share >= COMES}
    for grid in whole.grids():
        found += _of_parts(grid)
        untold = replace(grid, joins=tuple(j for j in grid.joins if (j.call, j.operator) not in told and j.modules))
        found += _of_grid(_come(untold, FEW / max(whole.paths, 1)), Asked("all", "all parameters"))
    found += _of_dead(dead)
    found.sort(key=lambda f: -f.strength)
    if not any(f.kind != "divided" for f in found):
        found.append(_nothing(early, group, found))
    return tuple(_in_turn(found)[:MOST])


def _in_turn(found: Sequence[Finding]) -> list[Finding]:
    """Put findings of one kind apart where there are many, so that each kind is heard."""
    rank: dict[str, int] = {}
    keyed = []
    for f in found:
        rank[f.kind] = rank.get(f.kind, 0) + 1
        keyed.append((rank[f.kind] > 3, f))
    return [f for late in (False, True) for was, f in keyed if was == late]


class Asked(NamedTuple):
    """Whose joins are spoken of: in which table, and how its parameters are called."""

    table: str
    group: str


def _come(grid: Grid, share: float) -> Grid:
    """Leave out joins to which hardly any path comes."""
    return replace(grid, joins=tuple(j for j in grid.joins if j.share >= share))


def _of_grid(grid: Grid, asked: Asked) -> Iterator[Finding]:
    """Say by which branch paths come, at the joins of one kind: those that have the same branches together."""
    of_weights = grid.operator in CONTRACTIONS and not any(j.modules for j in grid.joins)  # which use of many it was
    if grid.operator == "heads" or of_weights:
        return
    alike: dict[frozenset[str], list[Join]] = {}
    for join in grid.joins:
        alike.setdefault(frozenset(b.name for b in join.branches), []).append(join)
    for names, joins in alike.items():
        yield from _of_joins(replace(grid, branches=tuple(n for n in grid.branches if n in names)), joins, asked)


def _of_joins(grid: Grid, joins: Sequence[Join], asked: Asked) -> Iterator[Finding]:
    """Say so of joins that have the same branches."""
    paths = {name: sum(b.paths for j in joins for b in j.branches if b.name == name) for name in grid.branches}
    total = sum(paths.values())
    top = max(paths, key=lambda name: paths[name])
    share = paths[top] / total
    cells, group = _column(asked.table, joins, top), asked.group
    others = [n for n in grid.branches if n != top]
    comes = sum(j.share for j in joins) / len(joins)
    strength = (
        (comes if asked.table == "early" else 0.25)
        * (2 * share - 1 if share > NEARLY else 0.3)
        * (1.0 if any(j.modules for j in joins) else 0.4)
    )
    where, amount = _where(grid, joins), f"{cell(share)}%"
    few = "" if comes > 0.9 or asked.table == "all" else f" (where {cell(comes)}% of them come)"
    spread = _spread(joins, top)
    if share > NEARLY and top == AROUND:
        text = f"{amount} of the paths from {group} go around {listed(others, 'and', 2)} {where}{few}{spread}."
        yield Finding("around", text, cells, share, total, strength)
    elif share > NEARLY:
        passed = f", {listed(others, 'or', 2)} hardly any" if AROUND not in others else ", hardly any around"
        text = f"{amount} of the paths from {group} take {top} {where}{few}{spread}{passed}."
        yield Finding("through", text, cells, share, total, strength)
    else:
        ranked = sorted(paths, key=lambda name: -paths[name])
        shares = listed([f"{n} {cell(paths[n] / total)}%" for n in ranked if paths[n]], most=5)
        text = f"The paths from {group} divide {where}{few}: {shares}."
        yield Finding("divided", text, cells, share, total, strength)
    if asked.table == "early":
        yield from _odd(joins, top)


def _odd(joins: Sequence[Join], top: str) -> Iterator[Finding]:
    """Name the join that differs most from its siblings."""
    shares = [next((b.share for b in j.branches if b.name == top), 0.0) for j in joins]
    if len(joins) < 4:
        return
    middle = median(shares)
    far = max(range(len(joins)), key=lambda n: abs(shares[n] - middle))
    spread = median(abs(s - middle) for s in shares)
    if abs(shares[far] - middle) < max(APART, 4 * spread):
        return
    label = labels_of(joins)[far]
    how = "go around" if top == AROUND else f"take {top}"
    text = f"{label} differs from its siblings: {cell(shares[far])}% {how}, and {cell(middle)}% at the median."
    yield Finding(
        "odd", text, _column("early", joins, top), shares[far], joins[far].paths, 0.5 + abs(shares[far] - middle) / 2
    )


def _column(table: str, joins: Sequence[Join], branch: str) -> tuple[Cell, ...]:
    return tuple(Cell(table, j.call, b.name, b.share, b.paths) for j in joins for b in j.branches if b.name == branch)


def _is_parts(grid: Grid) -> bool:
    """Tell whether branches are numbered ones of one kind: heads, experts."""
    return grid.operator == "heads" or (len(grid.branches) > 2 and stem_of(grid.branches)[0] not in ("", " part"))


def _of_parts(grid: Grid) -> Iterator[Finding]:
    """Say what heads or experts carry."""
    if not _is_parts(grid) or not any(j.modules for j in grid.joins):
        return
    kind, numbers = stem_of(grid.branches)
    one = kind.strip().rpartition(".")[2].removesuffix("s")
    idle, cells = [], []
    for join, label in zip(grid.joins, labels_of(grid.joins), strict=True):
        for branch, number in zip(join.branches, numbers, strict=False):
            if branch.share < IDLE / len(join.branches):
                idle.append(f"{one} {number} of {label}" if len(grid.joins) > 1 else f"{one} {number}")
                cells.append(Cell("all", join.call, branch.name, branch.share, branch.paths))
    count = sum(len(j.branches) for j in grid.joins)
    where = grid.pattern or "the model"
    if idle:
        text = f"{len(idle)} of the {count} {one}s in {where} carry next to nothing: {listed(idle, 'and', 3)}."
        yield Finding("idle", text, tuple(cells), len(idle) / count, count, 0.75)
    if grid.operator != "heads" or (len(grid.joins) == 1 and not idle):
        yield from _load(grid, one, numbers)


def _load(grid: Grid, one: str, numbers: Sequence[str]) -> Iterator[Finding]:
    """Give the share of each expert, at all joins of one kind together."""
    paths = {name: sum(b.paths for j in grid.joins for b in j.branches if b.name == name) for name in grid.branches}
    total = sum(paths.values())
    ranked = sorted(zip(paths, numbers, strict=True), key=lambda pair: -paths[pair[0]])
    shares = listed([f"{number} ({cell(paths[name] / total)}%)" for name, number in ranked], most=5)
    top = ranked[0][0]
    cells = tuple(
        Cell("all", j.call, b.name, b.share, b.paths) for j in grid.joins for b in j.branches if b.name == top
    )
    text = f"{one.capitalize()}s in {grid.pattern or 'the model'} by load: {shares}."
    yield Finding("load", text, cells, paths[top] / total, total, 0.7)


def _of_dead(dead: Mapping[str, float]) -> Iterator[Finding]:
    """Say from which parameters no path leads to the loss."""
    wholly = [name for name, share in dead.items() if share == 1]
    cells = tuple(Cell("dead", name, "", dead[name]) for name in wholly)
    if wholly:
        named = listed(wholly, "and", 3)
        text = f"No path leads from {len(wholly)} of the {len(dead)} parameters to the loss (dead): {named}."
        yield Finding("dead", text, cells, len(wholly) / len(dead), len(dead), 0.9)
    partly = sorted((n for n, share in dead.items() if DEAD <= share < 1), key=lambda n: -dead[n])
    if partly:
        shares = listed([f"{n} {cell(dead[n])}%" for n in partly], "and", 3)
        cells = tuple(Cell("dead", name, "", dead[name]) for name in partly)
        yield Finding("dead", f"Most scalars have no path (dead) in {shares}.", cells, dead[partly[0]], 0.0, 0.2)


def _nothing(early: JoinTable, group: str, found: Sequence[Finding]) -> Finding:
    if not early.rows:
        return Finding("nothing", f"The paths from {group} have no choice: no two branches come together on their way.")
    said = "no branch has nearly all of them" if found else "hardly any of them come to a join"
    return Finding("nothing", f"Nothing stands out in the paths from {group}: {said}.", strength=0.1)


def _where(grid: Grid, joins: Sequence[Join]) -> str:
    """Say at which joins."""
    said = OPERATORS.get(grid.operator, grid.operator)
    inside = f" of {grid.pattern}" if grid.pattern else ""
    if len(joins) > 1:
        return f"at the {len(joins)} {said}s{inside}"
    return f"at the {said} of {joins[0].home}" if joins[0].home else f"at the {said}"


def _spread(joins: Sequence[Join], top: str) -> str:
    """Give the least and the most of several, if they differ."""
    shares = [next((b.share for b in j.branches if b.name == top), 0.0) for j in joins]
    low, high = (shares.index(f(shares)) for f in (min, max))
    if len(joins) < 3 or shares[high] - shares[low] < 0.02:
        return ""
    labels = labels_of(joins)
    return f" ({cell(shares[low])}% at {labels[low]}, {cell(shares[high])}% at {labels[high]})"
