"""Show experiments in a terminal: progress while they run, tables when they are done.

Where the output is not a terminal there are no bars, one plain line for each measurement instead.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..queries.forest import KINDS
from .changes import group_of
from .tables import put
from .words import percent

WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
ENDS = {False: "perplexity at its best and at the end", True: "score at the end"}
MEASURE_NAMES = {"share": "plain", "weighted_share": "weighted"}


class _Count(MofNCompleteColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class Screen:
    """Progress of a run, step by step and measurement by measurement.

    Attributes:
        lines: whether it says in lines, too, where there are no bars.

    >>> with Screen(Console(quiet=True)) as screen:
    ...     screen.show("full model", 1, 10)
    """

    def __init__(self, console: Console, *, lines: bool = True) -> None:
        self.lines = lines
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(20),
            _Count(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=not lines,
        )
        self.now: TaskID | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.doing(None)
        self.bars.stop()

    def doing(self, what: str | None) -> None:
        """Say what is being done, until something else is."""
        if self.now is not None:
            self.bars.remove_task(self.now)
        self.now = None
        if what and self.console.is_terminal:
            self.now = self.bars.add_task(what, total=None, note="")
        elif what and self.lines:
            plain(self.console, what)

    def track(self, name: str, calls: Sequence[Any]) -> Iterator[Any]:
        """Go through the calls of a pass; a bar of its own moves, and is gone when it is done."""
        if not self.console.is_terminal:
            yield from calls
            return
        task, stride = self.bars.add_task(name, total=len(calls), note=""), 1 + len(calls) // 200
        for n, call in enumerate(calls):
            yield call
            if n % stride == 0:
                self.bars.update(task, completed=n + 1)
        self.bars.remove_task(task)

    def show(self, run: str, step: int, steps: int, note: str = "") -> None:
        """Move a run's bar to a step; print the note where there are no bars."""
        if not self.console.is_terminal:
            if note:
                plain(self.console, f"{run}, step {step} of {steps}: {note}")
            return
        if run not in self.tasks:
            self.tasks[run] = self.bars.add_task(run, total=steps, note="")
        self.bars.update(self.tasks[run], completed=step)
        if note:
            self.bars.update(self.tasks[run], note=note)


def plain(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no folding, no colours guessed from its words."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def said(console: Console, text: str, begin: str = "", hang: int = 0) -> None:
    """Print sentences, whole words to a line.

    Args:
        begin: what stands before the first line, below which the others begin.
        hang: or how far in they begin.
    """
    indent = {"initial_indent": begin, "subsequent_indent": " " * (hang or len(begin))}
    for line in text.split("\n"):
        plain(console, "\n".join(textwrap.wrap(line, max(console.width, 20), **indent, **WHOLE_WORDS)))


def show_competition(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished competition and its conclusion."""
    said(console, f"\n{_learned(results)}")
    for kind in KINDS:
        said(console, f"\nInfluence on the shared embedding, {kind} traces: plain (weighted)")
        put(console, *_influence_over_training(results, kind))
    ablation = results["ablation"]
    if ablation["rows"]:
        what = f"samples to {goal_of(ablation)}; {ENDS['score' in ablation['full']]}"
        dip = "how far the held-out loss lay above the full model's, in nats, on average over training"
        said(console, f"\nAblation: {what}; the dip is {dip}")
        put(console, *outcomes(ablation))
        if cumulative := ablation.get("cumulative"):
            said(console, "\nThe least influential left out first, then the next; and the most influential first")
            put(console, *chains(cumulative))
        said(console, "\nOrder of influence against order of ablation damage, most first")
        put(console, *_agreement(results["agreement"]["rows"]))
        if cumulative:
            said(console, cumulative["sentence"])
    said(console, results["agreement"]["sentence"])


def _learned(results: Mapping[str, Any]) -> str:
    """Say what was learned."""
    if task := results.get("task"):
        (short, long), beyond = task["lengths"], task["beyond"]
        more = f", then tried on {beyond[0]} to {beyond[1]}" if beyond else ""
        solved = f"solved at a score of {task['solved']:.0%}"
        return f"{task['name']}: {task['about']}; lengths {short} to {long}{more}; {solved}"
    corpus = results["corpus"]
    return (
        f"{corpus['name']}: {corpus['words']:,} words, {corpus['vocabulary']:,} in the vocabulary, "
        f"{corpus['unknown_share_held_out']:.1%} of the held-out words unknown; "
        f"word frequencies alone have perplexity {corpus['unigram_perplexity']:.1f}"
    )


def goal_of(ablation: Mapping[str, Any]) -> str:
    """Say what samples are counted to."""
    reference = ablation.get("reference_perplexity")
    return "solve the task" if reference is None else f"the full model's best held-out perplexity, {reference:.1f}"


Rows = list[list[str]]


def _influence_over_training(results: Mapping[str, Any], kind: str) -> tuple[list[str], Rows, int, list[int]]:
    """Give the headings and rows of a table, and after which of them a line is drawn."""
    components = results.get("components") or results["options"]["components"]
    several = results["options"].get("seeds", 1) > 1
    rows, ends = [], []
    for run in results["runs"]:
        for trace in run["traces"]:
            seed = [str(run["seed"])] if several else []
            rows.append([*seed, str(trace["step"]), *_cells(trace["influence"], kind, components)])
        if run["traces"]:
            ends.append(len(rows) - 1)
    rows.append([*(["all"] if several else []), "mean", *_cells(results["influence"], kind, components)])
    return [*(["seed"] if several else []), "step", *components, "dead"], rows, 0, ends


def _cells(rows: Sequence[Mapping[str, Any]], kind: str, components: Sequence[str]) -> list[str]:
    found = {r["component"]: r for r in rows if r["kind"] == kind}
    shares = [f"{percent(found[n]['share'])} ({percent(found[n]['weighted_share'])})" for n in components]
    return [*shares, percent(found[components[0]]["dead_share"])]


def outcomes(ablation: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Tabulate what became of each model; more than one component is left out where that was asked for."""
    scored = "score" in ablation["full"]
    last = ["final score", "beyond"] if scored else ["best", "final"]
    rows = ablation.get("sets") or [{"absent": [row["component"]]} | row for row in ablation["rows"]]
    named = [("full model", ablation["full"])]
    named += [(f"without {', '.join(row['absent'])}", row) for row in rows]
    cells = []
    for name, row in named:
        keys = ("score", "beyond") if scored else ("best_perplexity", "final_perplexity")
        ends = [f"{row[key]:.1f}" if not scored else spread(row.get(key), percent) for key in keys]
        influence, dip = spread(row.get("influence"), percent), spread(row.get("dip"), "{:+.3f}".format)
        cells.append([name, influence, f"{row['parameters']:,}", samples(row), *ends, dip])
    return ["model", "influence", "parameters", "samples", *last, "dip"], cells


def chains(cumulative: Mapping[str, Any]) -> tuple[list[str], Rows, int]:
    """Tabulate the dips of both orders of leaving out, by how many were left out."""
    headings = [f"{which} first: {what}" for which in ("least", "most") for what in ("influence", "dip", "samples")]
    rows = []
    for pair in zip(cumulative["least"], cumulative["most"], strict=True):
        cells = [
            (spread(row["influence"], percent), spread(row["dip"], "{:+.3f}".format), samples(row)) for row in pair
        ]
        rows.append([str(pair[0]["removed"]), *cells[0], *cells[1]])
    return ["left out", *headings], rows, 0


def samples(row: Mapping[str, Any]) -> str:
    """Say after how many samples a model got there; with several seeds on average, if all of them did."""
    if row["samples"] is not None:
        return f"{row['samples']:,}"
    several = row.get("seeds", 1) > 1
    return f"{row['reached']} of {row['seeds']} seeds" if several and row["reached"] else "not reached"


def spread(value: Mapping[str, Any] | None, write: Callable[[float | None], str]) -> str:
    """Write a mean and its interval over seeds.

    >>> spread({"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}, percent)
    '50.0% [25.0%, 75.0%]'
    """
    if value is None or value["mean"] is None:
        return "–"
    ends = "" if value["low"] is None else f" [{write(value['low'])}, {write(value['high'])}]"
    return write(value["mean"]) + ends


def _agreement(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], Rows, int]:
    cells = []
    for row in rows:
        rho = {"mean": row["spearman"], "low": row.get("spearman_low"), "high": row.get("spearman_high")}
        rho = "–" if row["spearman"] is None else f"{spread(rho, '{:.2f}'.format)} (n={row['n']})"
        name = MEASURE_NAMES[row["measure"]]
        cells.append([row["kind"], name, row["influence"], row["damage"], row["verdict"], rho])
    return ["traces", "influence", "order of influence", "order of damage", "verdict", "Spearman"], cells, 5


def show_trace(results: Mapping[str, Any], console: Console) -> None:
    """Print the components of a user's model by influence, then its strongest paths."""
    said(console, f"\nInfluence on {group_of(results['options']['of'])}, {results['options']['kind']} traces")
    rows = []
    for row in results["influence"]:
        note = "parameters inside" if row["inside"] else ""
        note = note if row.get("seen", True) else "not seen"
        shares = [percent(row[key]) for key in ("share", "weighted_share", "dead_share")]
        rows.append([row["component"], *shares, str(row["examples"]), note])
    put(console, ["component", "share", "weighted", "dead", "examples", ""], rows)
    for text in results["connected"]:
        said(console, f"examples are connected at {text}: shares are by position in the batch")
    if results["paths"]:
        plain(console, "\nStrongest paths:")
    for path in results["paths"]:
        plain(console, narrowed(path["text"], console.width) if console.is_terminal else path["text"])


def narrowed(path: str, width: int) -> str:
    """Leave out where in the code a path's steps are, if there is no room for that."""
    head, *steps = path.splitlines()
    if max(map(len, steps), default=0) > width:
        steps = [step.rpartition(" ")[0].rstrip() for step in steps]
    return "\n".join([*textwrap.wrap(head, width, **WHOLE_WORDS), *steps])


def show_answer(
    answer: Mapping[str, Any], console: Console, most: int, *, batches: int = 1, layers: bool = True
) -> None:
    """Print what a semiring says, a row for each parameter or for each layer.

    Args:
        most: rows.
        batches: of how many there are answers.
    """
    rows = answer.get("layers", answer["rows"]) if layers else answer["rows"]
    known = [figures_of(row) for row in rows]
    headings = list(dict.fromkeys(name for row in known for name in row))
    unit = ", log2" if any(key.startswith("log2") for row in rows for key in row) else ""
    of = f", batch {answer['batch']}" if batches > 1 else ""
    plain(console, f"\n{answer['semiring']}{unit or UNITS.get(answer['semiring'].split(':')[0], '')}{of}")
    names = [str(row.get("layer") or row["parameter"]) + str(row.get("index", "")) for row in rows]
    if len(headings) > MOST_FIGURES:
        said_in_one = [[", ".join(f"{k}: {v}" for k, v in row.items() if v != "0.0%")] for row in known]
        put(console, ["", "parts"], [[n, *row] for n, row in zip(names[:most], said_in_one, strict=False)], text=2)
    else:
        cells = [[name, *(row.get(h, "–") for h in headings)] for name, row in zip(names, known, strict=True)]
        put(console, ["", *headings], cells[:most])
    if len(rows) > most:
        plain(console, f"and {len(rows) - most} more")


UNITS = {"entropy": ", bits", "graded": ": parts by how many components they cross", "through": ": share of each"}
MOST_FIGURES = 7  # a column each


def figures_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Give the figures of an answer's row by their names.

    >>> figures_of({"parameter": "w", "log2_max": -2.0, "spectrum": [1.0, 3.0]})
    {'max': '-2', '0': '25.0%', '1': '75.0%'}
    """
    found = {}
    for key, value in row.items():
        if isinstance(value, float):
            found[key.removeprefix("log2_").replace("_", " ")] = f"{value:.4g}"
        elif key == "spectrum":
            known = [math.nan if part is None else part for part in value]  # None is how JSON has what no float holds
            total = sum(known) or 1.0
            found |= {str(n): percent(part / total) for n, part in enumerate(known)}
        elif key == "components" and value and isinstance(value[0], Mapping):
            found |= {c["component"]: percent(c["share"] or 0) for c in value}
        elif key == "components":
            found["crosses"] = " → ".join(value)
    return found


def show_findings(results: Mapping[str, Any], console: Console) -> None:
    """Print what stands out, whole words to a line."""
    plain(console, "\nWhat stands out:")
    for finding in results["snapshot"]["findings"]:
        said(console, finding["text"], "- ")
