"""What every public question costs, as a multiple of the same step's `loss.backward()`.

The rows are in `questions.py`, the models in `workloads.py`. For each row of each repeat: a forward pass and its
backward; a recorded forward pass; where the question is put to a trace, that trace, which has answered nothing yet; and
then the question. Everything is timed in one process, row after row and then again from the first, so that a slow
minute of the machine falls on all of them; medians over the repeats are reported. A row that takes longer than 20 s
is run once, and says so; one that cannot be asked says why.

    python benchmarks/questions_vs_backward.py --docs docs/performance.md      # the table there is written by this
    python benchmarks/questions_vs_backward.py --workloads all --repeats 3     # nine larger models as well
    python benchmarks/questions_vs_backward.py --rows 'grad *,trace' --workloads RNN
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

import torch
from common import RESULTS, machine, save
from questions import LEANT_ON, PEERS, ROWS, Known, Limit, Limits, Peer, Row, Step, record
from rich.progress import Progress
from workloads import SMALL, WORKLOADS, Subject

NAME = "questions_vs_backward"
LONG = 20.0  # seconds from which a row is run once
FORWARD, BACKWARD, RECORDED = "forward", "backward", "recorded forward"
PHASES = (FORWARD, BACKWARD, RECORDED)
RATIO = Limit("2", lambda _: 2.0), Limit("4", lambda _: 4.0)
A_CALL = Limit("20 (cells)", lambda _: 20.0), Limit("40 (cells)", lambda _: 40.0)
Asked: TypeAlias = Row | Peer
Seconds: TypeAlias = dict[str, list[float]]
Cell: TypeAlias = dict[str, Any]


class Watch:
    """Seconds by name, of a machine that is waited for."""

    def __init__(self, subject: Subject) -> None:
        self.seconds: Seconds = {}
        self._wait: Callable[[], None] = torch.cuda.synchronize if subject.x.is_cuda else lambda: None

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Time the block."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


def once(subject: Subject, asked: Asked, watch: Watch, k: int) -> None:
    """Put one question to a step of its own, beside a backward pass."""
    subject.model.zero_grad()
    with watch.timing(FORWARD):
        loss = subject.loss()
    with watch.timing(BACKWARD):
        loss.backward()
    del loss
    subject.model.zero_grad()
    if isinstance(asked, Peer):
        with watch.timing(asked.name):
            asked.ask(subject, k)
        return
    with watch.timing(RECORDED):
        step = record(subject)
    ready(step, asked)
    with watch.timing(asked.name):
        asked.ask(step)


def ready(step: Step, row: Row) -> None:
    """Do what comes before the question."""
    if row.traced:
        step.traced = step.tape.trace(step.recorded)
    row.prepare(step)


def warmed(subject: Subject, asked: Sequence[Asked], k: int, tick: Callable[[], None]) -> tuple[Seconds, Cell]:
    """Ask everything once: the seconds of what takes long, and why what cannot be asked cannot."""
    long, notes = {}, {}
    for row in asked:
        watch = Watch(subject)
        try:
            once(subject, row, watch, k)
        except Exception as error:  # a peer may not know an operator, nor be installed: a cell of the table
            notes[row.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            if watch.seconds[row.name][0] > LONG:
                long[row.name] = watch.seconds[row.name]
                notes[row.name] = "once"
        tick()
    return long, notes


def measure(name: str, asked: Sequence[Asked], repeats: int, progress: Progress, device: str = "cpu") -> dict[str, Any]:
    """Measure some rows of one workload."""
    torch.manual_seed(0)
    subject = WORKLOADS[name]().to(device)
    step = record(subject)
    calls, k = len(step.tape.calls), len(step.components)
    del step
    task = progress.add_task(name, total=(repeats + 1) * len(asked))
    watch = Watch(subject)
    long, notes = warmed(subject, asked, k, lambda: progress.advance(task))
    for _ in range(repeats):
        for row in asked:
            if row.name not in notes:
                once(subject, row, watch, k)
            progress.advance(task)
    seconds = {n: statistics.median(taken) for n, taken in (watch.seconds | long).items()}
    known = Known({n: s / seconds[BACKWARD] for n, s in seconds.items()}, seconds[BACKWARD], k)
    return {
        "workload": name,
        "what": (WORKLOADS[name].__doc__ or "").strip(),
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "calls": calls,
        "components": k,
        "seconds": {phase: seconds[phase] for phase in PHASES},
        "rows": cells(subject, asked, seconds, known, notes, calls),
    }


def cells(
    subject: Subject, asked: Sequence[Asked], seconds: dict[str, float], known: Known, notes: Cell, calls: int
) -> dict[str, Cell]:
    """Give each row's number, its limits, and what is to be said of it."""
    out = {}
    for row in asked:
        limits = row.limits if isinstance(row, Row) else None
        out[row.name] = cell(known.rows.get(row.name), limits, known) | {
            "seconds": seconds.get(row.name),
            "note": notes.get(row.name, ""),
        }
    out["recorded forward / forward"] = cell(seconds[RECORDED] / seconds[FORWARD], RATIO, known)
    if "trace" in seconds:
        limits = A_CALL if subject.cells else None
        out["µs a call of the trace"] = cell(1e6 * seconds["trace"] / calls, limits, known)
    return out


def cell(number: float | None, limits: Limits | None, known: Known) -> Cell:
    """Give a number and its limits."""
    goal, must = (limit.of(known) for limit in limits) if limits is not None else (None, None)
    return {"number": number, "goal": goal, "must": must, "note": ""}


# ---------------------------------------------------------------- the table


def shown(found: Cell | None) -> str:
    """Write a cell: ● where the goal is missed, bold and ●● where it is more than it must be."""
    if found is None:
        return ""
    if found["number"] is None:
        return f"not asked: {found['note'][:70].replace('|', '/')}"
    said, once_only = f"{found['number']:.2f}", " (once)" if found["note"] == "once" else ""
    if found["must"] is not None and found["number"] > found["must"]:
        return f"**{said}** ●●{once_only}"
    return said + (" ●" if found["goal"] is not None and found["number"] > found["goal"] else "") + once_only


def limits_of(name: str) -> tuple[str, str]:
    """Give a row's limits in words."""
    special = {"recorded forward / forward": RATIO, "µs a call of the trace": A_CALL}
    limits = special.get(name) or next((r.limits for r in ROWS if r.name == name), None)
    return (limits[0].said, limits[1].said) if limits is not None else ("", "")


def markdown(found: list[dict[str, Any]], on: dict[str, Any], repeats: int) -> str:
    """Write the table for people."""
    many = [c for w in found for c in w["rows"].values() if c["must"] is not None and c["number"] is not None]
    above = sum(c["number"] > c["must"] for c in many), sum(c["number"] > c["goal"] for c in many)
    lines = [
        f"{on.get('gpu', on['cpu'])}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; medians of "
        f"{repeats} interleaved repeats, as multiples of backward. Of {len(many)} numbers with limits {above[1]} miss "
        f"their goal (●), {above[0]} of them exceed what they must not (●●).",
        "",
        "| question | goal | must | " + " | ".join(w["workload"] for w in found) + " |",
        "|---|--:|--:|" + "--:|" * len(found),
        "| backward, ms | | | " + " | ".join(f"{1000 * w['seconds'][BACKWARD]:.1f}" for w in found) + " |",
        "| operator calls | | | " + " | ".join(str(w["calls"]) for w in found) + " |",
        "| k, components asked about | | | " + " | ".join(str(w["components"]) for w in found) + " |",
    ]
    for name in dict.fromkeys(n for w in found for n in w["rows"]):
        goal, must = limits_of(name)
        lines.append(f"| {name} | {goal} | {must} | " + " | ".join(shown(w["rows"].get(name)) for w in found) + " |")
    what = [f"{w['workload']}: {w['what'].rstrip('.')}; {w['parameters']:,} parameters." for w in found]
    return "\n".join([*lines, "", *what]) + "\n"


def put(page: Path, table: str) -> None:
    """Write a table between its marks in a page."""
    start, end = f"<!-- {NAME} -->\n", f"<!-- end of {NAME} -->"
    before, rest = page.read_text(encoding="utf-8").split(start)
    page.write_text(before + start + table + end + rest.split(end)[1], encoding="utf-8")


def chosen(patterns: str) -> list[Asked]:
    """Give the rows that match some globs, and those that their limits lean on."""
    globs = patterns.split(",")
    rows = [r for r in ROWS if any(fnmatch(r.name, g) for g in globs)]
    peers = [p for p in PEERS if any(fnmatch(p.name, g) for g in globs)]
    return [*(r for r in ROWS if r in rows or (rows and r.name in LEANT_ON)), *peers]


def beside(asked: Sequence[Asked]) -> list[Asked]:
    """Put each peer after the row beside which it stands."""
    peers = [p for p in asked if isinstance(p, Peer)]
    out: list[Asked] = []
    for row in asked:
        if isinstance(row, Row):
            out += [row, *(p for p in peers if p.beside == row.name)]
    return out + [p for p in peers if p not in out]


def run(names: Sequence[str], rows: str, repeats: int, device: str = "cpu") -> Iterator[list[dict[str, Any]]]:
    """Measure some rows of some workloads; give what is known after each of them."""
    asked = beside(chosen(rows))
    if not asked:
        raise SystemExit(f"no row is called {rows!r}; there are: {', '.join(r.name for r in (*ROWS, *PEERS))}")
    found = []
    with Progress(transient=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap warns where it falls back, captum of its hooks
        for name in names:
            found.append(measure(name, asked, repeats, progress, device))
            yield found


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time every public question next to backpropagation.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", default="*", help="globs, with commas (default: all; always those that limits name)")
    parser.add_argument(
        "--workloads",
        default=",".join(SMALL),
        help=f"with commas, or all: {', '.join(WORKLOADS)} (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, help="a page in which the table is to be replaced")
    given = parser.parse_args()
    names = list(WORKLOADS) if given.workloads == "all" else given.workloads.split(",")
    on, table = machine(), ""
    for found in run(names, given.rows, given.repeats):
        table = markdown(found, on, given.repeats)
        save(given.out, NAME, table, {"machine": on, "repeats": given.repeats, "workloads": found})
    if given.docs:
        put(given.docs, table)


if __name__ == "__main__":
    main()
