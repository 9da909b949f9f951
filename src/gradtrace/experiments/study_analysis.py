"""Tables and figures of a study, from its results alone: nothing is trained, and the same file gives the same bytes.

What is compared, and what is corrected for how many comparisons, was fixed before there were numbers: docs/study.md.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError
from ..queries.group_names import listed
from .checkpoint import write_whole
from .plugged import SENSES
from .predictors import BASELINES, TRACES
from .statistics import (
    FEWEST,
    RESAMPLES,
    Estimate,
    Floats,
    by_architecture,
    ceiling,
    estimate,
    holm,
    in_turn,
    of_kind,
    spearman,
    without_kind,
)
from .study import DAMAGES, damages, read_header, read_units

PRIMARY, PRIMARY_DAMAGES = ("best", "greedy", "through"), ("area", "samples")
MARKS = ("<!-- study:begin -->", "<!-- study:end -->")
LEVEL = 0.05


@dataclass(frozen=True)
class Table:
    """A part of the page."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Sense:
    """The units of one sense as arrays: units × components."""

    def __init__(self, name: str, units: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
        self.name, self.units = name, units
        self.architecture = np.array([u["architecture"] for u in units])
        self.kinds = np.array([u["components"] for u in units])
        found = [damages(u, options) for u in units]
        self.damage = {name: np.array([d[name] for d in found]) for name in DAMAGES}
        names = (*TRACES, *BASELINES)
        self.predictor = {name: np.array([u["predictors"][name] for u in units], float) for name in names}

    def scores(self, predictor: str, damage: str) -> Floats:
        """Give each architecture's mean correlation; nan where there is none."""
        known = self.damage[damage]
        says = of_kind(known, self.kinds, self.architecture) if predictor == "kind" else self.predictor[predictor]
        return by_architecture(spearman(says, known), self.architecture)


class Analysis:
    """Everything that is read off the results of a study."""

    def __init__(self, place: Path) -> None:
        self.header, self.units = read_header(place), read_units(place)
        senses = [(name, [u for u in self.units if u["sense"] == name]) for name in SENSES]
        self.senses = [Sense(name, units, self.header["options"]) for name, units in senses if units]
        if not self.senses:
            raise OptionError(f"{place} holds no finished unit yet")

    @cached_property
    def tables(self) -> list[Table]:
        """All parts, in the order of the page."""
        return [
            self.run_table(),
            self.primary(),
            *map(self.everything, self.senses),
            *map(self.differences, self.senses),
            self.rest(),
            self.in_turn(),
            self.ceilings(),
        ]

    def run_table(self) -> Table:
        rows = []
        for sense in self.senses:
            solved = [u["runs"]["samples"][-1] is not None for u in sense.units]
            censored = np.isinf(sense.damage["samples"])
            tasks = Counter(u["task"] for u in sense.units)
            rows.append((
                sense.name,
                str(len(set(sense.architecture.tolist()))),
                str(len(sense.units)),
                f"{np.mean(solved):.0%}",
                f"{censored.mean():.0%}",
                ", ".join(f"{name} {n}" for name, n in sorted(tasks.items())),
            ))  # fmt: skip
        made = self.header["versions"]
        text = (
            f"Made by gradtrace {made['gradtrace']}, torch {made['torch']}, Python {made['python']}. "
            "A unit is one architecture under one seed, all 15 sets of its components trained."
        )
        head = (
            "sense",
            "architectures",
            "units",
            "full networks that solved",
            "ablated ones that did not",
            "units of each task",
        )
        return Table("What was run", text, head, tuple(rows))

    def primary(self) -> Table:
        keys = [(s, p, d) for s in self.senses for p in PRIMARY for d in PRIMARY_DAMAGES]
        found = [estimate(s.scores(p, d)) for s, p, d in keys]
        corrected = holm([e.p for e in found])
        rows = tuple(
            (s.name, p, d, shown(e), str(e.count), _p(e.p), _p(q), "yes" if q < LEVEL else "no")
            for (s, p, d), e, q in zip(keys, found, corrected, strict=True)
        )
        few = len(PRIMARY) * len(PRIMARY_DAMAGES)
        text = (
            "Mean within-architecture Spearman correlation [95 % interval]; p by sign flips, then corrected by Holm "
            f"over all {len(keys)}"
            + ("" if len(keys) > few else f" (one sense only: the design has {2 * few})")
            + ". Architectures in which nothing can be ranked (all ties) are left out of n; "
            f"no interval is given for fewer than {FEWEST}."
        )
        return Table(
            "The primary question",
            text,
            ("sense", "predictor", "damage", "ρ", "n", "p", "p corrected", "significant"),
            rows,
        )

    def everything(self, sense: Sense) -> Table:
        rows = tuple(
            (name, *(shown(estimate(sense.scores(name, damage), RESAMPLES // 5)) for damage in DAMAGES))
            for name in (*TRACES, *BASELINES, "kind")
        )
        return Table(
            f"All predictors and damages: {sense.name}",
            "Exploratory, uncorrected: read nothing into one cell.",
            ("predictor", *DAMAGES),
            rows,
        )

    def differences(self, sense: Sense) -> Table:
        pairs = [(p, b) for p in PRIMARY for b in ("best", *BASELINES, "kind") if p != b]
        keys = [(p, b, d) for p, b in pairs for d in PRIMARY_DAMAGES]
        found = [estimate(sense.scores(p, d) - sense.scores(b, d)) for p, b, d in keys]
        corrected = dict(zip(keys, holm([e.p for e in found]), strict=True))
        by_key = dict(zip(keys, found, strict=True))
        rows = tuple(
            (p, b, *(shown(by_key[p, b, d]) + ("*" if corrected[p, b, d] < LEVEL else "") for d in PRIMARY_DAMAGES))
            for p, b in pairs
        )
        text = (
            "ρ of the trace less ρ of the baseline, on the same architectures; "
            f"* where p < 0.05 after Holm over all {len(keys)}."
        )
        return Table(f"Against baselines: {sense.name}", text, ("trace", "baseline", *PRIMARY_DAMAGES), rows)

    def rest(self) -> Table:
        keys = [(s, p) for s in self.senses for p in (*TRACES, *(b for b in BASELINES if b != "parameters"))]
        rows = tuple(
            (s.name, p, *(shown(estimate(by_architecture(
                without_kind(s.predictor[p], s.damage[d], s.kinds, s.architecture), s.architecture), RESAMPLES // 5))
                for d in PRIMARY_DAMAGES))
            for s, p in keys
        )  # fmt: skip
        return Table(
            "Without the kind",
            "Correlation of what the kind does not explain, over all units; exploratory.",
            ("sense", "predictor", *PRIMARY_DAMAGES),
            rows,
        )

    def in_turn(self) -> Table:
        """What comes of leaving out one after the other, by each predictor's order, as the chapter proposes."""
        rows = []
        for name in (*TRACES, *BASELINES):
            cells = []
            for sense in self.senses:
                each = [
                    in_turn(says, lambda there, u=u: _number(u["runs"]["area"][there - 1]))
                    for says, u in zip(sense.predictor[name].tolist(), sense.units, strict=True)
                ]
                cells.append(shown(estimate(by_architecture(np.array(each), sense.architecture), RESAMPLES // 5)))
            rows.append((name, *cells))
        text = (
            "Components are left out one after the other until one is left, those first that a predictor says matter "
            "most, or least; the difference in the mean area, over that of the best order. 1: the best order, 0: no "
            "better than chance. Exploratory."
        )
        return Table("One after the other", text, ("predictor", *(s.name for s in self.senses)), tuple(rows))

    def ceilings(self) -> Table:
        rows = []
        for sense in self.senses:
            found = [estimate(ceiling(sense.damage[d], sense.architecture)) for d in DAMAGES]
            rows.append((sense.name, "one seed by another", *map(shown, found)))
            rows.append((sense.name, "√", *(f"{math.sqrt(e.mean):.2f}" if e.mean > 0 else "–" for e in found)))
        return Table(
            "The ceiling",
            "How well one seed's damage foretells another's, and about what the true mean damage would reach.",
            ("sense", "", *DAMAGES),
            tuple(rows),
        )

    def sentences(self) -> str:
        """Say what the primary tests found, whatever it is."""
        rows = self.tables[1].rows
        said = []
        for predictor in PRIMARY:
            of = [r for r in rows if r[1] == predictor]
            yes = [f"{r[2]} ({r[0]}, {r[3]})" for r in of if r[-1] == "yes"]
            no = [f"{r[2]} ({r[0]}, {r[3]})" for r in of if r[-1] == "no"]
            found = [f"it correlates significantly with {listed(yes, most=len(yes))}"] if yes else []
            found += [f"no significant correlation was found with {listed(no, most=len(no))}"] if no else []
            said.append(f"- **{predictor}**: {'; '.join(found)}.")
        return "\n".join(said)


def shown(e: Estimate) -> str:
    """Write a mean and its interval, if there are enough architectures for one."""
    if math.isnan(e.mean):
        return "–"
    return f"{e.mean:+.2f}" + ("" if math.isnan(e.low) else f" [{e.low:+.2f}, {e.high:+.2f}]")


def _number(x: float | None) -> float:
    return math.nan if x is None else x


def _p(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def markdown(analysis: Analysis, figures: Sequence[str]) -> str:
    """Write the tables for a page of documentation."""
    parts = ["### In short\n\n" + analysis.sentences()]
    for table in analysis.tables:
        lines = [
            f"### {table.title}",
            "",
            table.text,
            "",
            "| " + " | ".join(table.head) + " |",
            "|" + "---|" * len(table.head),
        ]
        parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)]))
    parts += [
        f"![Every predictor's correlation with the area under the loss curve, with its interval]({name})"
        for name in figures
    ]
    return "\n\n".join(parts)


def page(analysis: Analysis, figures: Sequence[Path]) -> str:
    """Write the tables as one HTML page, figures inside."""
    parts = [
        "<h1>Does the trace tell what matters?</h1>",
        *(f"<p>{html.escape(s.lstrip('- ').replace('**', ''))}</p>" for s in analysis.sentences().splitlines()),
    ]
    for table in analysis.tables:
        rows = [table.head, *table.rows]
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>"
            for row, tag in zip(rows, ["th", *["td"] * len(table.rows)], strict=True)
        )
        parts.append(f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.text)}</p><table>{body}</table>")
    parts += [path.read_text(encoding="utf-8").partition("<!DOCTYPE")[2].partition(">")[2] for path in figures]
    style = "td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #ccc}"
    style += "body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}"
    return f'<!doctype html><meta charset="utf-8"><title>gradtrace study</title><style>{style}</style>' + "\n".join(
        parts
    )


def draw_figures(analysis: Analysis, folder: Path, stem: str) -> list[Path]:
    """Draw each sense's correlations with their intervals; nothing without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return []
    paths = []
    names = [*TRACES, *BASELINES, "kind"]
    for sense in analysis.senses:
        found = [estimate(sense.scores(name, "area"), RESAMPLES // 5) for name in names]
        with matplotlib.rc_context({"svg.hashsalt": "gradtrace", "svg.fonttype": "none"}):
            figure = Figure(figsize=(7, 4.4), layout="constrained")
            axes = figure.subplots()
            for at, (e, name) in enumerate(zip(found, names, strict=True)):
                colour = "C0" if name in TRACES else "C7"
                axes.plot([e.low, e.high], [at, at], color=colour)
                axes.plot(e.mean, at, "o", color=colour)
            axes.axvline(0, color="black", linewidth=0.6)
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.set_xlabel(f"mean within-architecture Spearman correlation with area; {sense.name}")
            path = folder / f"{stem}-{sense.name}.svg"
            write_whole(path, lambda beside, f=figure: f.savefig(beside, format="svg", metadata={"Date": None}))
        paths.append(path)
    return paths


def analyse(place: Path, into: Path | None = None) -> str:
    """Write tables and figures: beside the results, or between the marks of a page of documentation.

    Returns:
        what was found, as text.

    Raises:
        OptionError: there are no results, the page has no marks, or scipy is missing.
    """
    need_scipy()
    analysis = Analysis(place)
    folder = into.parent if into else place if place.is_dir() else place.parent
    figures = draw_figures(analysis, folder, into.stem if into else "study")
    text = markdown(analysis, [path.name for path in figures])
    if into is not None:
        write_text(into, between(into, text))
        return f"{text}\n\nWritten into {into}"
    write_text(folder / "study.md", text + "\n")
    write_text(folder / "study.html", page(analysis, figures))
    return f"{text}\n\nWritten to {folder / 'study.html'}"


def between(path: Path, text: str, marks: tuple[str, str] = MARKS) -> str:
    """Put a text between the marks of a page.

    Raises:
        OptionError: it has none.
    """
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}") from None
    before, begin, rest = old.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise OptionError(f"{path} has no lines {marks[0]} and {marks[1]} to put results between")
    return f"{before}{begin}\n{text}\n{end}{after}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def need_scipy() -> None:
    """Say how to get scipy where it is missing.

    Raises:
        OptionError: it is.
    """
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise OptionError("a study's statistics need scipy: pip install 'gradtrace[study]'") from None
