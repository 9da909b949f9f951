"""Show experiments in a terminal: progress while they run, tables when they are done.

Where the output is not a terminal there are no bars, one plain line for each measurement instead.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    corpus = results["corpus"]
    plain(
        console,
        f"\n{corpus['name']}: {corpus['words']:,} words, {corpus['vocabulary']:,} in the vocabulary, "
        f"{corpus['unknown_share_held_out']:.1%} of the held-out words unknown; "
        f"word frequencies alone have perplexity {corpus['unigram_perplexity']:.1f}\n",
    )
    for kind in ("best", "greedy"):
        plain(console, f"Influence on the shared embedding, {kind} traces: plain (weighted)")
        console.print(_influence_over_training(results, kind))
    if results["ablation"]["rows"]:
        reference = results["ablation"]["reference_perplexity"]
        plain(console, f"Ablation: samples to the full model's best held-out perplexity, {reference:.1f}")
        console.print(_ablation(results["ablation"]))
        plain(console, "Order of influence against order of ablation damage, most first")
        console.print(_agreement(results["agreement"]["rows"]))
    plain(console, results["agreement"]["sentence"])


def _influence_over_training(results: Mapping[str, Any], kind: str) -> Table:
    components = results["options"]["components"]
    table = Table()
    for heading in ("step", *components, "dead"):
        table.add_column(heading, justify="right")
    for trace in results["runs"][0]["traces"]:
        table.add_row(str(trace["step"]), *_cells(trace["influence"], kind, components))
    table.add_section()
    table.add_row("mean", *_cells(results["influence"], kind, components))
    return table


def _cells(rows: Sequence[Mapping[str, Any]], kind: str, components: Sequence[str]) -> list[str]:
    found = {r["component"]: r for r in rows if r["kind"] == kind}
    shares = [f"{percent(found[n]['share'])} ({percent(found[n]['weighted_share'])})" for n in components]
    return [*shares, percent(found[components[0]]["dead_share"])]


def _ablation(ablation: Mapping[str, Any]) -> Table:
    table = Table()
    table.add_column("model")
    for heading in ("parameters", "samples", "best perplexity", "final perplexity"):
        table.add_column(heading, justify="right")
    named = [("full model", ablation["full"])]
    named += [(f"without {row['component']}", row) for row in ablation["rows"]]
    for name, row in named:
        samples = "not reached" if row["samples"] is None else f"{row['samples']:,}"
        perplexities = (f"{row['best_perplexity']:.1f}", f"{row['final_perplexity']:.1f}")
        table.add_row(name, f"{row['parameters']:,}", samples, *perplexities)
    return table


def _agreement(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for heading in ("traces", "influence", "order of influence", "order of damage", "verdict"):
        table.add_column(heading)
    table.add_column("Spearman", justify="right")
    for row in rows:
        rho = "–" if row["spearman"] is None else f"{row['spearman']:.2f} (n={row['n']})"
        name = MEASURE_NAMES[row["measure"]]
        table.add_row(row["kind"], name, row["influence"], row["damage"], row["verdict"], rho)
    return table


def show_trace(results: Mapping[str, Any], console: Console) -> None:
    """Print the components of a user's model by influence, then its strongest paths."""
    plain(console, f"Influence on {results['options']['of']}, {results['options']['kind']} traces")
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
