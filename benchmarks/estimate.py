"""What `tape.estimate()` says, next to what questions then take: time and peak memory, workload by workload.

Time is CPU time on one thread (`time.process_time`), as that of the calibration is, so that neighbours on the
machine disturb it less: the least of some repeats. Memory is the growth of the process's resident set at its peak
during the question; both are of the question and, if it is put to one, of the trace. What takes less than 4 MiB, and is
said to, is not compared. A question that would take more than `--most` bytes, by its estimate, is not asked.

    python benchmarks/estimate.py                                 # the table in results/
    python benchmarks/estimate.py --workloads all --fit           # and the constants of src/gradtrace/queries/costs.py

The constants are fitted (with scipy) to all workloads that were measured, those of the README among them.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, save
from questions import ROWS, Step, record
from trace_vs_backward import reset_peak, resident
from workloads import HELD_OUT, LARGE, WORKLOADS, Subject

import gradtrace
from gradtrace.kernels.memory import room_of
from gradtrace.queries.estimate import OF_A_TRACE, Speed, amount, bytes_of, calibrated, done, held, key_of, seconds_of
from gradtrace.queries.sizes import Sizes, sizes
from gradtrace.recording.components import select_leaves, top_level
from gradtrace.semirings import named

NAME = "estimate"
ASKED = {  # what an estimate calls it: its row among the questions
    "trace": "trace",
    "check": "trace, check=True",
    "greedy": "trace, greedy",
    "each example": "trace, each example",
    "greedy, each example": "trace, each example, greedy",
    "influence": "influence of one group, whole batch",
    "influence, each example": "influence of one group, each example",
    "influence, greedy, each example": "influence of one group, each example, greedy",
    "flow": "flow",
    "report": "report",
    **{
        f"grad, {name}": f"grad {row}"
        for name, row in {
            "sum": "Sum",
            "abssum": "AbsSum",
            "power:8": "power:8",
            "max": "Max",
            "count": "Count",
            "entropy": "entropy",
            "topk:8": "topk:8",
            "signedmax": "SignedMax",
            "through": "Through",
            "graded:4": "Graded:4",
        }.items()
    },
}
BY_NAME = {r.name: r for r in ROWS}
# a number for each scalar of each leaf is surely held, of semirings with several half of what they might be
LEAVES, EACH = held("trace", Sizes(1, leaves=1.0)).index(1.0), held("each example", Sizes(1, each=1.0)).index(1.0)
PARTLY = ("topk", "through", "graded")
LONG = 4.0  # seconds from which once is enough
LITTLE = 2**22  # bytes that are not compared


def ask(subject: Subject, question: str) -> tuple[float, int]:
    """Put one question to a step of its own; give its CPU seconds, and by how much the resident set grew."""
    row = BY_NAME[ASKED[question]]
    subject.model.zero_grad()
    step = record(subject)
    if row.traced:
        step.traced = step.tape.trace(step.recorded)
    row.prepare(step)
    room_of(subject.model).free.clear()
    before = reset_peak()
    began = time.process_time()
    kept = row.ask(step)
    seconds = time.process_time() - began
    grown = resident("VmHWM") - before
    del kept
    return seconds, grown


def sized(step: Step) -> dict[str, Any]:
    """Take down what estimates are made of: sizes of the tape, and of the group's part; how many components."""
    tape, loss = step.tape, step.tape.value_of(step.recorded)
    group = select_leaves(tape.record, step.group)
    return {
        "whole": asdict(sizes(tape.record, loss)),
        "group": asdict(sizes(tape.record, loss, group)),
        "components": len(top_level(tape.record)),
    }


def key(question: str, of: Mapping[str, Any]) -> tuple[str, Sizes, int]:
    """Give what a question costs as, the sizes that decide it, and its lanes."""
    found = Sizes(**of["group" if question.startswith("influence") else "whole"])
    if not question.startswith("grad, "):
        return question, found, 1
    known = key_of(named(question.removeprefix("grad, ")), of["components"])
    assert known is not None
    return known[0], found, known[1]


def measure(name: str, repeats: int, most: float, known: dict[str, Any]) -> None:
    """Measure the questions of one workload that are not known yet."""
    torch.manual_seed(0)
    subject = (WORKLOADS | HELD_OUT)[name]()
    row = known.setdefault(name, {"questions": {}})
    row |= sized(record(subject))
    for question in ASKED:
        if question in row["questions"] or bytes_of(*key(question, row)) > most:
            continue
        first, grown = ask(subject, question)
        times = [first] if first > LONG else []
        while len(times) < (1 if first > LONG else repeats):
            gc.collect()
            times.append(ask(subject, question)[0])
        row["questions"][question] = {"seconds": min(times), "bytes": grown}
        print(f"{name}, {question}: {min(times):.4f} s, {amount(grown)}", flush=True)


def fitted(known: Mapping[str, Any], speed: Speed) -> str:
    """Fit the constants of `costs` to all that was measured."""
    out = []
    for title, of_sizes, measured in (
        ("SECONDS", lambda q, of, lanes: done(q, of, speed, lanes), "seconds"),
        ("BYTES", held, "bytes"),
    ):
        out.append(f"{title} = {{")
        floor = 2.0**20 if measured == "bytes" else 0.0
        for question in ASKED:
            rows = [w for name, w in known.items() if question in w["questions"] and name not in HELD_OUT]
            keys = [key(question, w) for w in rows]
            x = np.array([of_sizes(*k) for k in keys])
            y = np.array([max(w["questions"][question][measured], floor) for w in rows])
            least = np.zeros(x.shape[1])
            if measured == "bytes" and keys[0][0] not in ("influence", "flow"):
                least[EACH if x[:, EACH].any() else LEAVES] = 0.5 if keys[0][0] in PARTLY else 1.0
            best = _least_errors(x, y, least)
            best[((best * x / y[:, None]).max(0) < 0.02) & (least == 0)] = 0.0  # what changes no estimate
            out.append(f'    "{keys[0][0]}": ({", ".join(f"{c:.3g}" for c in best)}),')
        out.append("}")
    return "\n".join(out)


def _least_errors(x: Any, y: Any, least: Any) -> Any:
    """Give factors, none of them below the least, for which the largest ratios of x · factors to y are small."""
    from scipy.optimize import least_squares, nnls

    relative = x / y[:, None]
    size = np.where(relative.max(0) > 0, relative.max(0), 1.0)
    known = relative @ least
    start = nnls(relative / size, np.maximum(1 - known, 0.1))[0]
    found = least_squares(
        lambda c: np.log(known + np.maximum(relative / size @ c, 1e-9)) ** 5,
        start + 1e-4, bounds=(0, np.inf), max_nfev=5000,
    )  # fmt: skip
    return least + found.x / size


def ratios(known: Mapping[str, Any], speed: Speed, names: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Give estimate over measurement, time and memory, by question and workload."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for question in ASKED:
        for name in names:
            if question in known[name]["questions"]:
                took, grew = together(question, known[name]["questions"])
                asked = [key(q, known[name]) for q in (question, *(("trace",) if question in OF_A_TRACE else ()))]
                said = sum(seconds_of(q, of, speed, lanes) for q, of, lanes in asked)
                grown = sum(bytes_of(*k) for k in asked)
                out.setdefault(question, {})[name] = said / took, max(grown, LITTLE) / max(grew, LITTLE)
    return out


def together(question: str, measured: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Give what a question took, with the trace that it was put to."""
    rows = [measured[question], *([measured["trace"]] if question in OF_A_TRACE else [])]
    return sum(row["seconds"] for row in rows), sum(row["bytes"] for row in rows)


def markdown(known: Mapping[str, Any], speed: Speed, names: list[str], on: Mapping[str, Any]) -> str:
    """Write the table for people: the measurement, and what the estimate is of it."""
    found = ratios(known, speed, names)
    pairs = [pair for row in found.values() for pair in row.values()]
    right = [sum(0.5 <= pair[i] <= 2 for pair in pairs) for i in (0, 1)]
    lines = [
        f"{on['cpu']}, {on['threads']} thread, torch {on['torch']}, Python {on['python']}; CPU time, which neighbours "
        "on the machine disturb less, and growth of the resident set. Each cell: measured, and the estimate as a "
        f"multiple of it. Within a factor of two: {right[0]} times and {right[1]} memories of {len(pairs)}.",
        "",
        "| question | " + " | ".join(names) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for question, row in found.items():
        cells = []
        for name in names:
            if name not in row:
                cells.append("not asked: too large")
                continue
            (took, grew), said = together(question, known[name]["questions"]), row[name]
            cells.append(f"{took:.3g} s ({_mark(said[0])}), {amount(grew)} ({_mark(said[1])})")
        lines.append(f"| {question} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mark(ratio: float) -> str:
    return f"{ratio:.2f}×" if 0.5 <= ratio <= 2 else f"**{ratio:.2f}×**"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Compare estimates with what questions take.")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--workloads", default=",".join(LARGE), help="with commas, or all (default: %(default)s)")
    parser.add_argument("--most", type=float, default=9e9, help="bytes that a question may take (default: %(default)g)")
    parser.add_argument("--fit", action="store_true", help="print constants that suit all that was measured")
    parser.add_argument("--again", action="store_true", help="forget what the file of results knows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = given.out / f"{NAME}.json"
    known = json.loads(file.read_text())["workloads"] if file.exists() and not given.again else {}
    speed = calibrated(1)
    for name in list(WORKLOADS) if given.workloads == "all" else given.workloads.split(","):
        measure(name, given.repeats, given.most, known)
        names = [n for n in LARGE if n in known] or list(known)
        on = machine() | {"gradtrace": gradtrace.__version__}
        save(
            given.out,
            NAME,
            markdown(known, speed, names, on),
            {"machine": on, "speed": asdict(speed), "workloads": known},
        )
    if given.fit:
        print(fitted(known, speed))


if __name__ == "__main__":
    main()
