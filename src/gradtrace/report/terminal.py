"""Show experiments in a terminal: progress while they run, tables when they are done.

Where the output is not a terminal there are no bars, one plain line for each measurement instead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..queries.forest import KINDS
from .changes import group_of
from .words import percent

MEASURE_NAMES = {"share": "plain", "weighted_share": "weighted"}


class Screen:
    """Progress of a run, step by step and measurement by measurement.

    >>> with Screen(Console(quiet=True)) as screen:
    ...     screen.show("full model", 1, 10)
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

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


def show_competition(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished competition and its conclusion."""
    plain(console, f"\n{_learned(results)}\n")
    for kind in KINDS:
        plain(console, f"Influence on the shared embedding, {kind} traces: plain (weighted)")
        console.print(_influence_over_training(results, kind))
    ablation = results["ablation"]
    if ablation["rows"]:
        plain(console, f"Ablation: samples to {goal_of(ablation)}; the dip is how far the held-out loss lay above")
        plain(console, "the full model's, in nats, on average over training")
        console.print(outcomes(ablation))
        if cumulative := ablation.get("cumulative"):
            plain(console, "The least influential left out first, then the next; and the most influential first")
            console.print(chains(cumulative))
            plain(console, cumulative["sentence"])
        plain(console, "Order of influence against order of ablation damage, most first")
        console.print(_agreement(results["agreement"]["rows"]))
    plain(console, results["agreement"]["sentence"])


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


def _influence_over_training(results: Mapping[str, Any], kind: str) -> Table:
    components = results.get("components") or results["options"]["components"]
    several = results["options"].get("seeds", 1) > 1
    table = Table()
    for heading in (*(["seed"] if several else []), "step", *components, "dead"):
        table.add_column(heading, justify="right")
    for run in results["runs"]:
        for trace in run["traces"]:
            cells = str(trace["step"]), *_cells(trace["influence"], kind, components)
            table.add_row(*([str(run["seed"])] if several else []), *cells)
        if run["traces"]:
            table.add_section()
    table.add_row(*(["all"] if several else []), "mean", *_cells(results["influence"], kind, components))
    return table


def _cells(rows: Sequence[Mapping[str, Any]], kind: str, components: Sequence[str]) -> list[str]:
    found = {r["component"]: r for r in rows if r["kind"] == kind}
    shares = [f"{percent(found[n]['share'])} ({percent(found[n]['weighted_share'])})" for n in components]
    return [*shares, percent(found[components[0]]["dead_share"])]


def outcomes(ablation: Mapping[str, Any]) -> Table:
    """Tabulate what became of each model; more than one component is left out where that was asked for."""
    scored = "score" in ablation["full"]
    table = Table()
    table.add_column("model")
    last = ("final score", "beyond") if scored else ("best perplexity", "final perplexity")
    for heading in ("influence", "parameters", "samples", *last, "dip"):
        table.add_column(heading, justify="right")
    rows = ablation.get("sets") or [{"absent": [row["component"]]} | row for row in ablation["rows"]]
    named = [("full model", ablation["full"])]
    named += [(f"without {', '.join(row['absent'])}", row) for row in rows]
    for name, row in named:
        keys = ("score", "beyond") if scored else ("best_perplexity", "final_perplexity")
        ends = [f"{row[key]:.1f}" if not scored else spread(row.get(key), percent) for key in keys]
        influence, dip = spread(row.get("influence"), percent), spread(row.get("dip"), "{:+.3f}".format)
        table.add_row(name, influence, f"{row['parameters']:,}", samples(row), *ends, dip)
    return table


def chains(cumulative: Mapping[str, Any]) -> Table:
    """Tabulate the dips of both orders of leaving out, by how many were left out."""
    table = Table()
    table.add_column("left out", justify="right")
    for direction in ("least", "most"):
        for heading in ("influence", "dip", "samples"):
            table.add_column(f"{direction} first: {heading}", justify="right")
    for pair in zip(cumulative["least"], cumulative["most"], strict=True):
        cells = [
            (spread(row["influence"], percent), spread(row["dip"], "{:+.3f}".format), samples(row)) for row in pair
        ]
        table.add_row(str(pair[0]["removed"]), *cells[0], *cells[1])
    return table


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


def _agreement(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for heading in ("traces", "influence", "order of influence", "order of damage", "verdict"):
        table.add_column(heading)
    table.add_column("Spearman", justify="right")
    for row in rows:
        rho = {"mean": row["spearman"], "low": row.get("spearman_low"), "high": row.get("spearman_high")}
        rho = "–" if row["spearman"] is None else f"{spread(rho, '{:.2f}'.format)} (n={row['n']})"
        name = MEASURE_NAMES[row["measure"]]
        table.add_row(row["kind"], name, row["influence"], row["damage"], row["verdict"], rho)
    return table


def show_trace(results: Mapping[str, Any], console: Console) -> None:
    """Print the components of a user's model by influence, then its strongest paths."""
    plain(console, f"Influence on {group_of(results['options']['of'])}, {results['options']['kind']} traces")
    table = Table()
    table.add_column("component")
    for heading in ("share", "weighted", "dead", "examples"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in results["influence"]:
        note = "parameters inside" if row["inside"] else ""
        note = note if row.get("seen", True) else "not seen"
        shares = [percent(row[key]) for key in ("share", "weighted_share", "dead_share")]
        table.add_row(row["component"], *shares, str(row["examples"]), note)
    console.print(table)
    for text in results["connected"]:
        plain(console, f"examples are connected at {text}: shares are by position in the batch")
    if results["paths"]:
        plain(console, "Strongest paths:")
    for path in results["paths"]:
        plain(console, path["text"])


def show_findings(results: Mapping[str, Any], console: Console) -> None:
    """Print what stands out, whole words to a line."""
    plain(console, "What stands out:")
    for finding in results["snapshot"]["findings"]:
        for line in textwrap.wrap(finding["text"], console.width, initial_indent="- ", subsequent_indent="  "):
            plain(console, line)
