"""A monitor's history, a line a trace (docs/history.md has the schema), as the document that a page is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..queries.markup import table_of
from ..queries.plots import draw_lines
from . import headline
from .document import SCHEMA, BadResults, finite, model_of, of_results, read_results, rows_of, served_by_fallback
from .words import counted, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA_OF_HISTORY = "gradtrace.history/1"
SUFFIX = ".jsonl"


@dataclass
class History:
    """What a training run's traces said.

    Attributes:
        run: what stays the same: `versions`, `model` and `options`.
        graphs: recordings by their signature; a run has several where the program took different ways.
        traces: in the order of the steps.
        failures: rows of `step` and `reason`.
    """

    run: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    traces: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the shares of components over the steps, of the first group, on these axes or new ones (matplotlib)."""
        rows = [(trace["step"], row) for trace in self.traces for row in trace["influence"]]
        lines: dict[str, list[tuple[int, float]]] = {}
        of, kind = (rows[0][1]["of"], rows[0][1]["kind"]) if rows else ("nowhere", "best")
        for step, row in rows:
            if (row["of"], row["kind"]) == (of, kind) and row["share"] is not None:
                lines.setdefault(row["component"], []).append((step, row["share"]))
        return draw_lines(lines, f"share of the {kind} paths from {of}", ax)

    def _repr_html_(self) -> str:
        """Show the first and the last share of every component."""
        ends = [{self._key(r): r["share"] for r in trace["influence"]} for trace in self.traces[:1] + self.traces[-1:]]
        rows = [[*key, percent(ends[0].get(key)), percent(share)] for key, share in (ends[-1] if ends else {}).items()]
        steps = [str(trace["step"]) for trace in self.traces]
        title = f"{counted(len(steps), 'trace')}" + (f", steps {steps[0]} to {steps[-1]}" if steps else "")
        return table_of(title, ["parameters", "traces", "component", "first", "last"], rows, text=3)

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["of"], row["kind"], row["component"]

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line.

        Raises:
            KeyError, ValueError: it is none of a history.
        """
        content = dict(line)
        kind = content.pop("kind")
        if kind == "run":
            if content["schema"] != SCHEMA_OF_HISTORY:
                raise ValueError(f"it is of schema {content['schema']!r}, and this version reads {SCHEMA_OF_HISTORY!r}")
            self.run = content
        elif kind == "graph":
            self.graphs[content.pop("signature")] = content
        elif kind in ("trace", "failure"):
            (self.traces if kind == "trace" else self.failures).append(content)
        else:
            raise ValueError(f"a line of kind {kind!r}")


def parse(lines: Iterable[str], name: str, keep: Callable[[str, Mapping[str, Any]], object] | None = None) -> History:
    """Read the lines of a history; what was cut off in the last one, as the process was killed, is left out.

    Args:
        name: what errors call it.
        keep: is given each whole line, and what it says.

    Raises:
        BadResults: it is not a history, or damaged.
    """
    history, cut = History(), None
    for number, line in enumerate(lines, 1):
        if cut is not None:
            raise BadResults(f"line {cut} of {name} is not JSON")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            cut = number
            continue
        if not line.endswith("\n"):
            break
        try:
            history.add(content)
        except (KeyError, TypeError, ValueError) as error:
            raise BadResults(f"{name} is not a history of gradtrace: line {number}: {error}") from None
        if keep is not None:
            keep(line, content)
    if not history.run:
        raise BadResults(f"{name} is not a history of gradtrace: it has no line of kind 'run'")
    return history


def read_history(path: Path) -> History:
    """Read history.jsonl.

    Raises:
        BadResults: there is no such file, or it is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return parse(file, str(path))
    except OSError as error:
        raise BadResults(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadResults(f"{path} is not a history of gradtrace: {error}") from None


def read_document(path: Path) -> dict[str, Any]:
    """Make the document of results.json, or of history.jsonl.

    Raises:
        BadResults: it is neither, or nothing has been traced yet.
    """
    return of_history(read_history(path)) if path.suffix == SUFFIX else of_results(*read_results(path))


def of_history(history: History, title: str | None = None) -> dict[str, Any]:
    """Make the document of a history: its last trace, and how the others led there.

    Raises:
        BadResults: nothing has been traced yet, or something is missing in it.
    """
    if not history.traces:
        raise BadResults("nothing has been traced yet" + _said_of(history.failures))
    try:
        return finite({"schema": SCHEMA, "kind": "history"} | _document(history, title))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise BadResults(f"this history is damaged: {type(error).__name__}: {error}") from error


def _said_of(failures: list[dict[str, Any]]) -> str:
    return f": {failures[-1]['reason']}" if failures else ""


def _document(history: History, title: str | None) -> dict[str, Any]:
    last = history.traces[-1]
    return {
        "title": title or f"gradtrace: training of {history.run['model']}",
        "headline": headline.of_history(history.traces),
        "graph": history.graphs[last["graph"]],
        "snapshots": [_snapshot(trace, last) for trace in history.traces],
        "training": [{"name": "traced batches", "without": None, "evaluations": _losses(history)}],
        "semirings": [{"batch": 0} | answer for answer in last["semirings"]],
        "provenance": _provenance(history),
    }


def _snapshot(trace: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Give a trace's figures; calls have numbers in its own graph, which may not be the one that is shown."""
    same = trace["graph"] == last["graph"]
    drawn = {"flows": trace["flows"] if same else [], "paths": trace["paths"] if same else {}}
    kept = ("step", "loss", "influence", "findings", *(("joins",) if trace is last else ()))
    return {key: trace[key] for key in kept if key in trace} | drawn


def _losses(history: History) -> list[dict[str, Any]]:
    return [{"step": t["step"], "loss": t["loss"]} for t in history.traces]


def _provenance(history: History) -> list[tuple[str, list[tuple[str, str]]]]:
    run, last = history.run, history.traces[-1]
    connected = "; ".join(last["connected"]) or "nowhere"
    spent, elapsed = last["seconds"]["tracing"], last["seconds"]["training"]
    share = f"{spent / elapsed:.2%} of {elapsed:,.0f} s" if elapsed else "not measured"
    cost = [("traces", str(len(history.traces))), ("time, up to the last trace", share)]
    failed = [(f"step {f['step']}", f["reason"]) for f in history.failures]
    return [
        ("Versions", rows_of(run["versions"])),
        ("Run", rows_of({k: v for k, v in run["options"].items() if v is not None})),
        ("Model", model_of(history.graphs[last["graph"]])),
        ("Proof", [served_by_fallback(last["fallbacks"]), ("connected at", connected)]),
        ("Cost", cost),
        *([("Failed traces", failed)] if failed else []),
    ]
