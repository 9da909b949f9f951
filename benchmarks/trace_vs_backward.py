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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, machine, save
from torch import Tensor, nn

import gradtrace
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.options import Options
from gradtrace.kernels.memory import room_of
from gradtrace.queries.component_sets import AT_ONCE, crossing
from gradtrace.recording.components import select_leaves

Loss = Callable[[], Tensor]
WEIGHED = 3  # repeats in which memory is measured


@dataclass(frozen=True)
class Subject:
    """A model, and its loss on one batch."""

    model: nn.Module
    loss: Loss


def gpt2() -> Subject:
    """GPT-2 shape: 4 layers, d 768, 12 heads, vocabulary 50,257, batch 4 × 128 tokens; random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=4, n_positions=128, use_cache=False)
    model = GPT2LMHeadModel(config)
    ids = torch.randint(config.vocab_size, (4, 128))
    return Subject(model, lambda: model(input_ids=ids, labels=ids).loss)


class LanguageModel(nn.Module):
    """Embedding, LSTM, output layer."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        """Score the next word at every position: time × batch → time × batch × vocabulary."""
        return self.output(self.lstm(self.embedding(words))[0])


def lstm() -> Subject:
    """LSTM language model: 2 × 650, vocabulary 10,000, batch 20 × 35."""
    model, words = LanguageModel(10_000, 650, 2), torch.randint(10_000, (35, 20))
    return Subject(model, lambda: F.cross_entropy(model(words).flatten(0, 1), words.flatten()))


def competition() -> Subject:
    """The default `gradtrace compete` model and batch."""
    given = Options()
    model = Competition(given.components, given.vocabulary, given.hidden, given.seed)
    words = torch.randint(given.vocabulary, (given.batch, given.bptt))
    return Subject(model, lambda: next_word_loss(model, words, words))


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch norm, and a skip connection."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if channels == out and stride == 1 else project

    def forward(self, x: Tensor) -> Tensor:
        """Add what two convolutions make of x to x."""
        inner = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(inner + self.skip(x))


def resnet() -> Subject:
    """ResNet shape: 64-128-256 channels, batch 16 × 32 × 32."""
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = [Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2)]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    return Subject(model, lambda: F.cross_entropy(model(x), y))


def layers(width: int, depth: int, activation: type[nn.Module], batch: int) -> Subject:
    """Stack linear layers and activations."""
    model = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(width, width), activation())))
    x = torch.randn(batch, width)
    return Subject(model, lambda: model(x).square().mean())


def mlp() -> Subject:
    """MLP 4 × 2048, batch 512, ReLU."""
    return layers(2048, 4, nn.ReLU, 512)


def tiny() -> Subject:
    """MLP 20 × 20 units, batch 1, tanh: all overhead."""
    return layers(20, 20, nn.Tanh, 1)


# what a workload is, and what the whole trace may cost as a multiple of backward: the goal, and what it must not exceed
SUBJECTS: dict[str, tuple[Callable[[], Subject], float, float]] = {
    "GPT-2": (gpt2, 1.0, 2.0),
    "LSTM": (lstm, 1.5, 3.0),
    "competition": (competition, 2.0, 4.0),
    "ResNet": (resnet, 1.5, 3.0),
    "MLP": (mlp, 0.8, 1.2),
    "tiny MLP": (tiny, 10.0, 25.0),
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
        subject, meter = SUBJECTS[name][0](), Meter()
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
    make, goal, must = SUBJECTS[name]
    return {
        "workload": name,
        "what": (make.__doc__ or "").strip(),
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
    parser.add_argument("--workloads", default=",".join(SUBJECTS), help="names, with commas (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows, on = run(given.workloads.split(","), given.repeats, given.seconds), machine()
    table = markdown(rows, on, given.repeats)
    save(given.out, "trace_vs_backward", table, {"machine": on, "repeats": given.repeats, "rows": rows})


if __name__ == "__main__":
    main()
