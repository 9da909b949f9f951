"""What moved from one trace to another, matched by name: shares of components, dead parameters, the strongest paths.

Two traces may be of different batches, steps, seeds or models. A change says that numbers differ; whether that is more
than chance is a question for several traces of each.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from ..queries.arguments import file_of
from ..queries.group_names import listed
from .changes import COLUMNS, HEADINGS, MEASURES, Change, Side, group_of, tables
from .document import SCHEMA, finite
from .page import frame, render
from .tables import put
from .terminal import plain, said

if TYPE_CHECKING:
    import pandas

WIDTH = 80

Shown: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
Key: TypeAlias = tuple[str, str, str, str]  # measure, kind, parameters, name


@dataclass(frozen=True)
class Comparison:
    """Two traces, matched by name.

    Attributes:
        changes: what both have, by measure, the largest change first.
        unmatched: names that one of them alone has, by what they are names of: (in the first, in the second).
        reshaped: parameters that have another shape.
        shown: of each the document of its page, and the moment in it, for a page of both.
    """

    before: Side
    after: Side
    changes: tuple[Change, ...]
    unmatched: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    reshaped: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = field(default=(), repr=False, compare=False)

    def of(self, measure: str) -> list[Change]:
        """Give one measure's changes, the largest first."""
        return [c for c in self.changes if c.measure == measure]

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a number: measure, kind, of, name, before, after, change."""
        import pandas

        columns = ("measure", "kind", "of", "name", "before", "after", "change")
        return pandas.DataFrame([[getattr(c, key) for key in columns] for c in self.changes], columns=[*columns])

    def sentences(self) -> list[str]:
        """Say what moved most, and what could not be matched."""
        moved = [c for c in self.changes if c.moved]
        said = [_said(most) for measure in MEASURES if (most := _most(moved, measure)) is not None]
        said = said or ["Nothing moved." if self.changes else "There is nothing that both of them have."]
        for what, pair in self.unmatched.items():
            ends = zip(pair, self.sides, strict=True)
            parts = [f"{listed(names)} only in {side.name}" for names, side in ends if names]
            said.append(f"Not matched, {what}: {'; '.join(parts)}.")
        if self.reshaped:
            said.append(f"Of another shape: {listed(self.reshaped)}.")
        apart = [any((row.get("examples") or 1) > 1 for row in of["influence"]) for _, of in self.shown]
        if len(set(apart)) > 1:
            one, other = self.sides if apart[0] else self.sides[::-1]
            said.append(
                f"{one.name} counts the paths of each example, {other.name} those of the batch: shares differ for that "
                "alone."
            )
        return said

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.before, self.after

    def show(self, console: Console, most: int = 12) -> None:
        """Print what moved, the largest change first, and what to make of it last, so that it stays on the screen.

        Args:
            most: rows of a table.
        """
        plain(console, f"from  {self.before}\nto    {self.after}")
        for measure, title in MEASURES.items():
            moved = [c for c in self.of(measure) if c.moved]
            still = len(self.of(measure)) - len(moved)
            if moved:
                plain(console, f"\n{title}")
                put(console, *_table(moved[:most]))
                rest = [f"{n} more {what}" for n, what in ((len(moved[most:]), "moved"), (still, "did not move")) if n]
                if rest:
                    plain(console, "; ".join(rest))
        plain(console, "")
        for sentence in self.sentences():
            said(console, sentence, "- ")

    def report(self, path: str | PathLike[str]) -> Path:
        """Write a page, one HTML file that needs nothing else.

        Returns:
            the path.

        Raises:
            BadArgument: there is no such folder.
        """
        file = file_of(path)
        file.write_text(self.page(), encoding="utf-8")
        return file

    def page(self) -> str:
        """Write it as HTML."""
        return render(self.document())

    def document(self) -> dict[str, Any]:
        """Make the document of a page: both as two moments of the second one's program, and what moved.

        Where the first ran another program, its flow and its paths have no place in the picture, and are left out.
        """
        (first, _), (second, _) = self.shown
        drawn = {} if _same_program(first["graph"], second["graph"]) else {"flows": [], "paths": {}}
        unmatched = [
            (what, f"only in {side.name}", found)
            for what, pair in self.unmatched.items()
            for side, found in zip(self.sides, pair, strict=True)
        ]
        unmatched.append(("parameters", "of another shape", self.reshaped))
        names = [str(side) for side in self.sides]
        moments = [_moment(of, {"name": name}) for name, (_, of) in zip(names, self.shown, strict=True)]
        return finite(
            {
                "schema": SCHEMA,
                "kind": "compare",
                "title": f"gradtrace: {self.before.name} and {self.after.name}",
                "headline": self.sentences(),
                "graph": second["graph"],
                "snapshots": [moments[0] | drawn, moments[1]],
                "changes": tables(self.changes),
                "unmatched": [row for row in unmatched if row[2]],
                "provenance": [
                    (f"{section}, {side.name}", rows)
                    for side, (document, _) in zip(self.sides, self.shown, strict=True)
                    for section, rows in document["provenance"]
                ],
            }
        )

    def _repr_html_(self) -> str:
        return frame(self.page())

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=WIDTH))
        return text.getvalue().rstrip()

    __repr__ = __str__


def _most(moved: Sequence[Change], measure: str) -> Change | None:
    return next((c for c in moved if c.measure == measure), None)


def _said(c: Change) -> str:
    before, after, change = c.written()
    what = {
        "share": f"{after} of the {c.kind} paths from {c.of} cross {c.name}",
        "weighted_share": f"By weight, {after} of the {c.kind} paths from {c.of} cross {c.name}",
        "dead_share": f"{after} of {c.of} have no {c.kind} path",
        "log2_strength": f"The strongest path from {c.name} has log2 weight {after}",
    }[c.measure]
    return f"{what}; it was {before} ({change})."


def _table(changes: Sequence[Change]) -> tuple[list[str], list[list[str]], int]:
    keys = COLUMNS[changes[0].measure]
    headings = [HEADINGS[key] for key in keys]
    rows = [[*(getattr(c, key) for key in keys), *c.written()] for c in changes]
    return [*headings, "before", "after", "change"], rows, len(keys)


# ------------------------------------------------------------- from documents


def between(
    before: tuple[str, Mapping[str, Any], Mapping[str, Any], bool],
    after: tuple[str, Mapping[str, Any], Mapping[str, Any], bool],
) -> Comparison:
    """Compare two snapshots.

    Args:
        before, after: the name, the document, the snapshot in it, and whether every parameter was asked for its paths,
            so that one without any has none.
    """
    first, second = dict(_numbers(*before[1:])), dict(_numbers(*after[1:]))
    sides = _side(*before[:3]), _side(*after[:3])
    found = [Change(*key, number, second[key]) for key, number in first.items() if key in second]
    order = [*MEASURES]
    found.sort(key=lambda c: (order.index(c.measure), -abs(c.change), c.kind, c.of, c.name))
    shapes = [side.parameters for side in sides]
    unmatched = {
        "parameters": _apart(*shapes),
        "groups": _apart(_names(first, "dead_share"), _names(second, "dead_share")),
        "components": _apart(_names(first, "share"), _names(second, "share")),
    }
    reshaped = tuple(n for n, shape in shapes[0].items() if shapes[1].get(n, shape) != shape)
    apart = {k: pair for k, pair in unmatched.items() if any(pair)}
    return Comparison(*sides, tuple(found), apart, reshaped, (before[1:3], after[1:3]))


def _same_program(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether calls and parameters have the same numbers in both."""
    called = all(first["calls"][key] == second["calls"][key] for key in ("number", "operator", "module"))
    return called and first["parameters"]["name"] == second["parameters"]["name"]


def _moment(taken: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Give a snapshot with the groups' names by which it is compared."""
    rows = {key: [row | {"of": group_of(row["of"])} for row in taken[key]] for key in ("influence", "flows")}
    return {**taken, **rows, **named}


def _names(numbers: Iterable[Key], measure: str) -> list[str]:
    return list(dict.fromkeys(name for found, *_, name in numbers if found == measure))


def _apart(first: Iterable[str], second: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give what one of two alone has, in its order."""
    return tuple(n for n in first if n not in {*second}), tuple(n for n in second if n not in {*first})


def _side(name: str, document: Mapping[str, Any], snapshot: Mapping[str, Any]) -> Side:
    parameters = document["graph"]["parameters"]
    shapes = {n: tuple(shape) for n, shape in zip(parameters["name"], parameters["shape"], strict=True)}
    return Side(name, snapshot.get("loss"), snapshot.get("step"), shapes)


def _numbers(document: Mapping[str, Any], snapshot: Mapping[str, Any], whole: bool) -> Iterator[tuple[Key, float]]:
    """Give the numbers of a snapshot: (measure, kind, parameters, name), and the number."""
    for row in snapshot["influence"]:
        kind, of = row["kind"], group_of(row["of"])
        for measure in ("share", "weighted_share"):
            if row[measure] is not None:
                yield (measure, kind, of, row["component"]), row[measure]
        if row["dead_share"] is not None:
            yield ("dead_share", kind, of, of), row["dead_share"]
    starts = snapshot["paths"].get("best", {}).get("starts") or {"leaf": [], "log2": []}
    names = document["graph"]["parameters"]["name"]
    strongest = dict.fromkeys(names, -math.inf) if whole and "best" in snapshot["paths"] else {}
    for leaf, log2 in zip(starts["leaf"], starts["log2"], strict=True):
        if log2 is not None:
            strongest[names[leaf]] = max(strongest.get(names[leaf], -math.inf), log2)
    for name, log2 in strongest.items():
        yield ("log2_strength", "best", name, name), log2
