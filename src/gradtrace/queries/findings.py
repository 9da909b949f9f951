"""Findings: what stands out in a trace, as sentences that carry the cells of the tables that they are made of.

They are made of joins: what the paths of the earliest parameters do where they have a choice, how that changes along
layers or steps, which heads and experts carry nothing, which layer differs from its siblings; and of what is lost
(`lost`), which comes first. What every path must do is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from statistics import mean, median
from typing import NamedTuple

from ..recording.record import Record, Value
from .branch_names import AROUND, LISTS, QUERIES, STARTS, VALUES
from .departures import living
from .forest import Forest
from .group_names import group_named, listed
from .join_rows import Grid, Join, pattern_of
from .join_text import cell, labels_of, stem_of
from .joins import JoinTable

NEARLY = 0.8  # from which share on a branch has it all
COMES = 0.05  # the least share of the paths at one of the joins that are spoken of,
FEW = 10  # and how many paths have to come to a join to be compared with others, or from all parameters to be told
LITTLE = 0.01  # the least share of the paths from all parameters at one of the joins that are spoken of
APART = 0.2  # how far a layer is from its siblings that differs from them, and how much a share moves along them
TIMES = 1.5  # or how many times it is as large, if it moves by more than
SOME = 0.05
TURNED = 0.02  # between shares of two branches whose order is another by weight
WIDE = 0.1  # between shares of one branch at different joins, of which the average does not say enough
FEW_JOINS = 3  # of which each is named, rather than the least and the most of them
FEW_PARTS = 4  # without a name of their own, of which it says something how paths divide among them
IDLE = 0.05  # of an even share, below which a head or an expert carries next to nothing
MOST = 7
MOST_OF_JOINS = 0.9  # the strength of what is said of joins: what is lost comes first
ALL = "all parameters"
OPERATORS = {"sub": "difference", "add": "addition", "cat": "concatenation", "mul": "product", "div": "division"}
OPERATORS |= {"addcmul": "gated sum", "index_add": "sum of parts", "bmm": "product", "baddbmm": "product"}
OPERATORS |= {"overlay": "in-place write"}
OPERATORS |= dict.fromkeys(("mm", "addmm", "linear", "matmul"), "matrix product")


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
        kind: "dead", "examples", "fading", "vanished", "around", "through", "divided", "trend", "odd",
            "idle", "load", or "nothing".
        figure: the share that it gives, if it gives one: paths in `cells` over `paths`, or a cell's value. Of what
            fades or vanishes it is log2 of a factor.
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
    return {
        name: 1 - living(forest, leaf) / leaf.numel if leaf.numel and leaf is not forest.loss else 0.0
        for name, leaf in forest.record.leaves.items()
    }


def findings(early: JoinTable, whole: JoinTable, lost: Sequence[Finding]) -> tuple[Finding, ...]:
    """Say what stands out: what is lost first, then the strongest.

    Args:
        early: joins of the earliest parameters, or of others that somebody asks about.
        whole: joins of all parameters.
        lost: what is said of what is dead or vanishes.
    """
    group = group_named(early.of, early.of_all, shorten=True)
    spoken_of = [grid for grid in early.grids() if any(j.share >= COMES for j in grid.joins)]
    found = [*lost, *(f for grid in spoken_of for f in _of_grid(grid, Asked("early", group, early.weight)))]
    told = {(j.call, j.operator) for grid in spoken_of for j in grid.joins}
    for grid in whole.grids():
        found += _of_parts(grid)
        joins = [j for j in grid.joins if j.modules and j.paths >= FEW and j.share >= LITTLE]
        if any((j.call, j.operator) not in told for j in joins):
            found += _of_grid(grid, Asked("all", ALL, whole.weight))
    found.sort(key=lambda f: -f.strength)
    if not any(f.kind != "divided" for f in found):
        found.append(_nothing(early, group, found))
    return tuple(_explained(_in_turn(found)[:MOST], group, counted(early)))


def counted(table: JoinTable) -> str:
    """Say what paths are counted."""
    return "one for each scalar and example" if table.examples > 1 else "one for each scalar"


def _explained(found: Sequence[Finding], group: str, explanation: str) -> list[Finding]:
    """Say what is counted where paths are spoken of first."""
    out = list(found)
    for n, finding in enumerate(out):
        for words in (f"paths from {group}", f"paths from {ALL}"):
            if words in finding.text:
                out[n] = replace(finding, text=finding.text.replace(words, f"{words} ({explanation})", 1))
                return out
    return out


def _in_turn(found: Sequence[Finding]) -> list[Finding]:
    """Put findings of one kind apart where there are many, so that each kind is heard."""
    rank: dict[str, int] = {}
    keyed = []
    for f in found:
        rank[f.kind] = rank.get(f.kind, 0) + 1
        keyed.append((rank[f.kind] > 3, f))
    return [f for late in (False, True) for was, f in keyed if was == late]


class Asked(NamedTuple):
    """Whose joins are spoken of: in which table, how its parameters are called, and what all their paths weigh."""

    table: str
    group: str
    weight: float

    def heavy(self, joins: Sequence[Join]) -> float:
        """Give what part of all paths' weight comes to a join, on the average: none where no path weighs anything."""
        return _mean(j.weight for j in joins) / self.weight if self.weight else 0.0


def _of_grid(grid: Grid, asked: Asked) -> Iterator[Finding]:
    """Say by which branch paths come, at the joins of one kind: those that have the same branches together."""
    starting = any(name.endswith(STARTS) for name in grid.branches)  # which use of many it was
    if any(name.startswith(f"{AROUND} (") for name in grid.branches):  # one value that comes in twice, as a norm's does
        return
    if grid.operator == "heads" or (starting and (asked.table == "all" or not any(j.modules for j in grid.joins))):
        return
    alike: dict[frozenset[str], list[Join]] = {}
    for join in grid.joins:
        alike.setdefault(frozenset(b.name for b in join.branches), []).append(join)
    for joins in alike.values():
        yield from _of_joins(_Alike(grid, joins), asked)


class _Alike:
    """Joins of a grid that have the same branches, and what they come to together.

    Attributes:
        paths, heavy: by branch, how many paths, and their weight as a share of all.
        total: of paths.
    """

    def __init__(self, grid: Grid, joins: Sequence[Join]) -> None:
        self.grid, self.joins = grid, joins
        self.branches = [n for n in grid.branches if any(b.name == n for b in joins[0].branches)]
        self.paths = {n: sum(join.branch(n).paths for join in joins) for n in self.branches}
        self.total = sum(self.paths.values())
        weights = {n: fsum(_weight(join, n) for join in joins) for n in self.branches}
        weight = fsum(weights.values())
        self.heavy = {n: w / weight if weight else math.nan for n, w in weights.items()}
        # joins to which so few paths come that their shares say little are compared with none
        self.compared = [n for n, join in enumerate(joins) if join.paths >= FEW]
        self.labels = labels_of(joins)

    def share(self, name: str) -> float:
        """Give the share of a branch at all joins together."""
        return self.paths[name] / self.total

    def shares(self, name: str) -> list[float]:
        """Give those at each join that is compared."""
        return [self.joins[n].branch(name).share for n in self.compared]

    def moving(self) -> list[str]:
        """Name the branches whose shares move in one direction from the first join to the last, and far."""
        found = [n for n in self.branches if len(self.compared) > 2 and _moves(self.shares(n))]
        if len(self.branches) > 2:
            return found
        return sorted(found, key=lambda n: -self.shares(n)[-1])[:1]  # of two, the other says the same

    def by_weight(self) -> str:
        """Say the order by weight, where it is another."""
        pairs = [(a, b) for a in self.branches for b in self.branches]
        turned = (self.share(a) - self.share(b) >= TURNED <= self.heavy[b] - self.heavy[a] for a, b in pairs)
        ranked = sorted(self.branches, key=lambda n: -self.heavy[n])
        said = listed([f"{n} {cell(self.heavy[n])}%" for n in ranked if self.heavy[n]], most=5)
        return f"; by weight {said}" if any(turned) else ""


def _weight(join: Join, name: str) -> float:
    return join.branch(name).weighted_share * join.weight if join.weight else 0.0


def _moves(shares: Sequence[float]) -> bool:
    """Tell whether shares rise, or fall, by much: almost every one beside the next."""
    first, last = shares[0], shares[-1]
    far = abs(last - first) >= APART or (abs(last - first) > SOME and max(first, last) >= TIMES * min(first, last))
    return far and steadily(shares, 0.6)


def steadily(numbers: Sequence[float], least: float) -> bool:
    """Tell whether numbers go from the first towards the last at nearly every step: Kendall's rank correlation."""
    ups = [(b > a) - (b < a) for n, a in enumerate(numbers) for b in numbers[n + 1 :]]
    return abs(sum(ups)) >= least * len(ups) and sum(ups) * (numbers[-1] - numbers[0]) > 0


def _of_joins(alike: _Alike, asked: Asked) -> Iterator[Finding]:
    """Say so of joins that have the same branches."""
    joins, group = alike.joins, asked.group
    top = max(alike.branches, key=lambda name: alike.paths[name])
    share, others = alike.share(top), [n for n in alike.branches if n != top]
    comes = max(_mean(j.share for j in joins), asked.heavy(joins))
    strength = (
        (comes if asked.table == "early" else 0.25)
        * (2 * share - 1 if share > NEARLY else 0.3)
        * (1.0 if any(j.modules for j in joins) else 0.4)
    )
    where, amount = _where(alike) + _few(joins, asked), f"{cell(share)}%"
    more, moving = alike.by_weight(), alike.moving()
    found = _column(asked.table, joins, top), share, alike.total, min(strength, MOST_OF_JOINS)
    if share > NEARLY and top == AROUND:
        text = f"{amount} of the paths from {group} go around {listed(_come_by(others), 'and', 2)} {where}"
        text += _spread(alike, top)
        yield Finding("around", f"{text}{more}.", *found)
    elif share > NEARLY and top.endswith(STARTS):
        text = f"{amount} of the paths from {group} start {where} as its {top.removesuffix(STARTS)}, "
        text += _passed(alike, others)
        yield Finding("through", f"{text}{more}.", *found)
    elif share > NEARLY:
        text = f"{amount} of the paths from {group} take {top} {where}{_spread(alike, top)}, {_passed(alike, others)}"
        yield Finding("through", f"{text}{more}.", *found)
    elif moving:
        yield _trend(alike, moving, asked, where, more, strength)
    elif not top.startswith("part ") or (joins[0].operator in LISTS and len(alike.branches) <= FEW_PARTS):
        ranked = sorted(alike.branches, key=lambda name: -alike.paths[name])
        shares = listed([f"{n} {cell(alike.share(n))}%{_range(alike, n)}" for n in ranked if alike.paths[n]], most=5)
        yield Finding("divided", f"The paths from {group} divide {where}: {shares}{more}.", *found)
    if asked.table == "early":
        yield from _odd(alike, top)


def _trend(alike: _Alike, moving: Sequence[str], asked: Asked, where: str, more: str, strength: float) -> Finding:
    """Say how shares move from the first to the last of joins."""
    ends = alike.compared[0], alike.compared[-1]
    first, last = (alike.labels[n] for n in ends)
    said = [
        f"{name} {'rises' if b > a else 'falls'} from {cell(a)}% to {cell(b)}%"
        for name in moving
        for a, *_, b in [alike.shares(name)]
    ]
    still = [f"{n} {cell(alike.share(n))}%" for n in alike.branches if n not in moving and len(alike.branches) > 2]
    rest = f", with {listed(still)} at all of them together" if still else ""
    text = f"The paths from {asked.group} divide {where}: from {first} to {last} {listed(said)}{rest}"
    cells = tuple(c for name in moving for c in _column(asked.table, alike.joins, name))
    most = max(abs(shares[-1] - shares[0]) for shares in map(alike.shares, moving))
    strength = min(strength * (2.6 + most), MOST_OF_JOINS)
    return Finding("trend", f"{text}{more}.", cells, alike.shares(moving[0])[-1], 0.0, strength)


def _passed(alike: _Alike, others: Sequence[str]) -> str:
    """Say how many paths take the other branches."""
    rest = 1 - alike.share(next(n for n in alike.branches if n not in others))
    amount = f"{cell(rest)}%" if rest else "none"
    names = [n.removesuffix(STARTS) for n in [n for n in others if alike.paths[n]] or _come_by(others)]
    return f"{amount} around" if AROUND in others else f"{amount} by {listed(names, 'or', 2)}"


def _come_by(branches: Sequence[str]) -> Sequence[str]:
    """Leave out those that paths can only begin with, if there are others."""
    return [n for n in branches if not n.endswith(STARTS)] or branches


def _odd(alike: _Alike, top: str) -> Iterator[Finding]:
    """Name the join that differs most from its siblings."""
    shares = alike.shares(top)
    if len(shares) < 4 or top in alike.moving():
        return
    middle = median(shares)
    far = max(range(len(shares)), key=lambda n: abs(shares[n] - middle))
    spread = median(abs(s - middle) for s in shares)
    if abs(shares[far] - middle) < max(APART, 4 * spread):
        return
    middle = median(shares[:far] + shares[far + 1 :])
    number = alike.compared[far]
    how = "go around" if top == AROUND else f"take {top}"
    text = f"{alike.labels[number]} differs from its siblings: {cell(shares[far])}% {how}, and {cell(middle)}% at the "
    cells = _column("early", alike.joins, top)
    strength = (0.5 + abs(shares[far] - middle) / 2) * alike.joins[number].share
    yield Finding("odd", f"{text}median.", cells, shares[far], alike.joins[number].paths, min(strength, MOST_OF_JOINS))


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
    many = [
        (j, label)
        for j, label in zip(grid.joins, labels_of(grid.joins), strict=True)
        if j.paths >= FEW * len(j.branches)
    ]
    for join, label in many:
        for branch, number in zip(join.branches, numbers, strict=False):
            if branch.share < IDLE / len(join.branches):
                idle.append(f"{one} {number} of {label}" if len(grid.joins) > 1 else f"{one} {number}")
                cells.append(Cell("all", join.call, branch.name, branch.share, branch.paths))
    count = sum(len(j.branches) for j, _ in many)
    where = grid.pattern or "the model"
    if idle:
        verb = "carries" if len(idle) == 1 else "carry"
        text = f"{len(idle)} of the {count} {one}s in {where} {verb} next to nothing: {listed(idle, 'and', 3)}."
        yield Finding("idle", text, tuple(cells), len(idle) / count, count, 0.75)
    if many and (grid.operator != "heads" or (len(grid.joins) == 1 and not idle)):
        yield from _load(grid, one, numbers)


def _load(grid: Grid, one: str, numbers: Sequence[str]) -> Iterator[Finding]:
    """Give the share of each expert, at all joins of one kind together."""
    paths = {name: sum(b.paths for j in grid.joins for b in j.branches if b.name == name) for name in grid.branches}
    total = sum(paths.values())
    ranked = sorted(zip(paths, numbers, strict=True), key=lambda pair: -paths[pair[0]])
    shares = listed([f"{number} ({cell(paths[name] / total)}%)" for name, number in ranked], most=5)
    top = ranked[0][0]
    text = f"{one.capitalize()}s in {grid.pattern or 'the model'} by load: {shares}."
    yield Finding("load", text, _column("all", grid.joins, top), paths[top] / total, total, 0.7)


def _nothing(early: JoinTable, group: str, found: Sequence[Finding]) -> Finding:
    if not early.rows:
        return Finding("nothing", f"The paths from {group} have no choice: no two branches come together on their way.")
    said = "no branch has nearly all of them" if found else "hardly any of them come to a join"
    return Finding("nothing", f"Nothing stands out in the paths from {group}: {said}.", strength=0.1)


def _where(alike: _Alike) -> str:
    """Say at which joins."""
    joins, grid = alike.joins, alike.grid
    said = OPERATORS.get(grid.operator, grid.operator.replace("_", " "))
    if QUERIES in alike.branches:
        said = "product of queries and keys"
    elif VALUES in alike.branches:
        said = "product of weights and values"
    head, of, tail = said.partition(" of ")
    word = "in" if of else "of"
    if len(joins) == 1:
        return f"at the {said}{_inside(joins[0].home or joins[0].near, word)}"
    near = {pattern_of(j.near) for j in joins}
    inside = _inside(grid.pattern or (near.pop() if len(near) == 1 else ""), word)
    if len(joins) == len(grid.joins):
        return f"at the {len(joins)} {head}s{of}{tail}{inside}"
    return f"at {len(joins)} of the {len(grid.joins)} {head}s{of}{tail}{inside} (those with {_telling(alike)})"


def _inside(place: str, word: str) -> str:
    return f" {place}" if place.startswith("after ") else f" {word} {place}" if place else ""


def _telling(alike: _Alike) -> str:
    """Name the branches that tell some joins of a grid from the others."""
    rest = [j for j in alike.grid.joins if j not in alike.joins]
    own = [n for n in alike.branches if not all(any(b.name == n for b in j.branches) for j in rest)]
    return listed(["a way around" if n == AROUND else n for n in own or alike.branches], "and", 3)


def _few(joins: Sequence[Join], asked: Asked) -> str:
    """Say how many of the paths come to joins, if not almost all; by weight, too, where those are the most."""
    low, high = (f(j.share for j in joins) for f in (min, max))
    if low > 0.95:
        return ""
    heavy = asked.heavy(joins)
    more = f", {cell(heavy)}% by weight" if heavy > 0.5 > _mean(j.share for j in joins) else ""
    if high - low < SOME:
        about = "" if cell(low) == cell(high) else "about "
        return f" (where {about}{cell(_mean(j.share for j in joins))}% of them come{more})"
    return f" (where {cell(low)}% to {cell(high)}% of them come{more})"


def _mean(numbers: Iterable[float]) -> float:
    return mean([*numbers])


def _spread(alike: _Alike, top: str) -> str:
    """Give the least and the most of several, if they differ."""
    shares = alike.shares(top)
    if len(shares) < 3 or max(shares) - min(shares) < 0.02:
        return ""
    labels = [alike.labels[alike.compared[shares.index(f(shares))]] for f in (min, max)]
    low, high = (n if n.startswith("after ") else f"at {n}" for n in labels)
    return f" ({cell(min(shares))}% {low}, {cell(max(shares))}% {high})"


def _range(alike: _Alike, name: str) -> str:
    """Give the least and the most of a branch whose average does not say enough."""
    shares = alike.shares(name)
    if len(shares) < 2 or max(shares) - min(shares) < WIDE:
        return ""
    if len(shares) > FEW_JOINS:
        return f" ({cell(min(shares))}% to {cell(max(shares))}%)"
    labels = (alike.labels[n] for n in alike.compared)
    return f" ({', '.join(f'{label} {cell(s)}%' for label, s in zip(labels, shares, strict=True))})"
