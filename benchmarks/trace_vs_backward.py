"""What a trace costs next to backpropagation: time and peak memory, workload by workload.

For each workload four things are measured in turn, interleaved in one process so that a slow minute of the machine
falls on all of them, and the median over the repeats is reported: the forward pass, `loss.backward()`, the
recorded forward pass, and the whole trace: the strength of every parameter, its backpointers, and for every
parameter scalar the set of up to 64 components that its best path crosses.
Memory is the growth of the process's resident set at its peak, of forward and backward together and of recording
and tracing together, in repeats of their own; it includes what the allocator holds on to.

    python benchmarks/trace_vs_backward.py --repeats 9
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, save
from torch import Tensor
from workloads import LARGE, Subject

import gradtrace
from gradtrace.kernels.memory import room_of
from gradtrace.queries.component_sets import AT_ONCE, crossing
from gradtrace.recording.components import select_leaves

WEIGHED = 3  # repeats in which memory is measured

# what the whole trace may cost as a multiple of backward: the goal, and what it must not exceed
LIMITS: dict[str, tuple[float, float]] = {
    "GPT-2": (1.0, 2.0),
    "LSTM": (1.5, 3.0),
    "competition": (2.0, 4.0),
    "ResNet": (1.5, 3.0),
    "MLP": (0.8, 1.2),
    "tiny MLP": (10.0, 25.0),
}


class Meter:
    """Seconds of each phase and bytes of each part, one number a repeat."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.bytes: dict[str, list[int]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    @contextmanager
    def peak(self, name: str) -> Iterator[None]:
        """Measure how far the resident set grows in the block."""
        before = reset_peak()
        yield
        self.bytes.setdefault(name, []).append(resident("VmHWM") - before)


def reset_peak() -> int:
    """Give free memory back, make the present resident set the peak, and tell its bytes."""
    gc.collect()
    if platform.system() != "Linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """Read a size of this process in bytes; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def timed(subject: Subject, meter: Meter) -> int:
    """Time each phase once; give the number of recorded operator calls."""
    subject.model.zero_grad()
    with meter.phase("forward"):
        loss = subject.loss()
    with meter.phase("backward"):
        loss.backward()
    del loss
    subject.model.zero_grad()
    with meter.phase("recorded forward"), gradtrace.record(subject.model) as tape:
        loss = subject.loss()
    with meter.phase("trace"):
        everything(tape, loss)
    return len(tape.calls)


def weighed(subject: Subject, meter: Meter) -> None:
    """Measure the memory of each part once, apart from times: giving memory back first costs whoever needs it next."""
    subject.model.zero_grad()
    with meter.peak("forward and backward"):
        subject.loss().backward()
    subject.model.zero_grad()
    room_of(subject.model).free.clear()  # what earlier traces left is this one's memory too
    with meter.peak("recording and trace"):
        with gradtrace.record(subject.model) as tape:
            loss = subject.loss()
        everything(tape, loss)


def everything(tape: gradtrace.Tape, loss: Tensor) -> int:
    """Trace: strengths and backpointers of all parameters, and the sets of components that they cross."""
    forest = tape.trace(loss).forest()
    components = [name for name in tape.record.modules if name][:AT_ONCE]
    seen = 0
    for crossed in crossing(forest, components, select_leaves(tape.record, "*")):
        for row in range(len(crossed.rows or ())):
            for _, _, bits in crossed.parts(row):
                seen += len(bits)
    return seen


def run(names: list[str], repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Measure every workload after a warm-up, one workload after the other, its phases in turn.

    At least `repeats` times, and for some seconds, so that a short one is not measured in one moment of a busy machine.
    """
    rows = []
    for name in names:
        torch.manual_seed(0)
        subject, meter = LARGE[name](), Meter()
        timed(subject, Meter())
        calls = timed(subject, Meter())
        began, done = time.perf_counter(), 0
        while done < repeats or time.perf_counter() - began < seconds:
            print(f"{name}: {done + 1} of at least {repeats}", end="\r", flush=True)
            timed(subject, meter)
            done += 1
        for _ in range(WEIGHED):
            weighed(subject, meter)
        rows.append(row(name, subject, calls, meter))
    return rows


def row(name: str, subject: Subject, calls: int, meter: Meter) -> dict[str, Any]:
    """Give one workload's medians, and their ratios."""
    seconds = {phase: statistics.median(taken) for phase, taken in meter.seconds.items()}
    peak = {part: statistics.median(taken) for part, taken in meter.bytes.items()}
    goal, must = LIMITS[name]
    return {
        "workload": name,
        "what": (LARGE[name].__doc__ or "").strip(),
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "calls": calls,
        "seconds": seconds,
        "peak_bytes": peak,
        "trace_to_backward": seconds["trace"] / seconds["backward"],
        "goal": goal,
        "must": must,
        "recorded_to_forward": seconds["recorded forward"] / seconds["forward"],
        "memory_ratio": peak["recording and trace"] / max(1, peak["forward and backward"]),
    }


def markdown(rows: list[dict[str, Any]], on: dict[str, Any], repeats: int) -> str:
    """Write the table for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; "
        f"medians of at least {repeats} interleaved repeats.",
        "",
        "| workload | calls | backward, ms | trace, ms | trace / backward | goal | must "
        "| recorded / plain forward | µs a call, trace | peak memory / forward and backward |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        backward, trace = r["seconds"]["backward"] * 1000, r["seconds"]["trace"] * 1000
        memory = f"{r['memory_ratio']:.2f} × {r['peak_bytes']['forward and backward'] / 2**20:.0f} MiB"
        if max(r["peak_bytes"].values()) < 2**20:
            memory = "both under 1 MiB"
        lines.append(
            f"| {r['what'].split(';')[0].rstrip('.')} | {r['calls']} | {backward:.1f} | {trace:.1f} "
            f"| **{r['trace_to_backward']:.2f}×** | {r['goal']}× | {r['must']}× | {r['recorded_to_forward']:.2f}× "
            f"| {1000 * trace / r['calls']:.0f} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time a whole trace next to backpropagation.")
    parser.add_argument("--repeats", type=int, default=9, help="at least so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="and for so long (default: %(default)s)")
    parser.add_argument("--workloads", default=",".join(LARGE), help="names, with commas (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows, on = run(given.workloads.split(","), given.repeats, given.seconds), machine()
    table = markdown(rows, on, given.repeats)
    save(given.out, "trace_vs_backward", table, {"machine": on, "repeats": given.repeats, "rows": rows})


if __name__ == "__main__":
    main()
