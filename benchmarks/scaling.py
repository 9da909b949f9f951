"""How the time of a trace grows: with layers, batch, width, and the size of random graphs; and one matrix's.

Five studies, each over a range of sizes. For each size four things are measured in turn, interleaved, and their
medians reported: the forward pass, `loss.backward()`, the recorded forward pass, and `tape.trace(loss)`.

    layers   layers of 20 units, batch 1                           expected slope 1
    batch    20 layers of 20 units                                 expected slope 1
    width    20 layers, batch 1                                    expected slope 2
    graph    random architectures, batch 16, by edges of the scalar graph    expected slope 1
    vector   one product of an N × N matrix with a vector, by N    expected slope 2

The slope is that of a straight line through the larger half of the points on logarithmic axes: below, the overhead
of the operator calls hides it. (Of the random graphs all points count, since they scatter.) A slope says how the
time grows, not how much it is, and nothing beyond the range.

    python benchmarks/scaling.py --out benchmarks/results --plots docs
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import linear_regression, median
from time import perf_counter
from typing import Any

import torch
from common import RESULTS, machine, save
from torch import Tensor, nn

import gradtrace
from gradtrace.experiments.random_architectures import RandomNetwork, grow

PHASES = ("forward", "backward", "recorded forward", "trace")
GRAPH_BATCH = 16


@dataclass(frozen=True)
class Subject:
    """A model and its loss, at one size of a study."""

    size: int
    model: nn.Module
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Study:
    """What is varied, over which sizes, and the slope that the theory expects.

    Attributes:
        make: the subject of one of `sizes`, or of `quick`.
        fitted: share of the points, the largest first, through which the line is drawn.
    """

    axis: str
    expected: int
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    make: Callable[[int], Subject]
    fitted: float = 0.5


def network(size: int, layers: int, width: int, batch: int) -> Subject:
    """Make layers of one width with tanh."""
    model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width), nn.Tanh())))
    x = torch.randn(batch, width)
    return Subject(size, model, lambda: model(x).square().mean())


def spread(drawn: int, kept: int) -> tuple[int, ...]:
    """Give seeds of random architectures from the smallest to the largest of those drawn."""
    by_size = sorted(range(drawn), key=lambda seed: grow(seed).size(GRAPH_BATCH)[1])
    return tuple(by_size[i * (drawn - 1) // (kept - 1)] for i in range(kept))


def random_graph(seed: int) -> Subject:
    """Grow a random architecture; its size is its scalar graph's number of edges."""
    architecture = grow(seed)
    model, x = RandomNetwork(architecture), torch.randn(GRAPH_BATCH, architecture.inputs)
    return Subject(architecture.size(GRAPH_BATCH)[1], model, lambda: model(x).square().mean())


class Product(nn.Module):
    """A matrix times a vector, both with a gradient."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(n, n) / math.sqrt(n))
        self.vector = nn.Parameter(torch.randn(n))

    def forward(self) -> Tensor:
        """Multiply."""
        return self.matrix @ self.vector


def matrix_vector(n: int) -> Subject:
    """Make a product of an N × N matrix with a vector."""
    model = Product(n)
    return Subject(n, model, lambda: model().square().sum())


STUDIES = {
    "layers": Study(
        "layers of 20 units", 1, (5, 10, 20, 40, 80, 160, 320, 640), (2, 4), lambda n: network(n, n, 20, 1)
    ),
    "batch": Study(
        "batch, 20 layers of 20 units",
        1,
        (1, 4, 16, 64, 256, 1024, 4096, 16384),
        (1, 2),
        lambda n: network(n, 20, 20, n),
    ),
    "width": Study(
        "width of 20 layers", 2, (16, 32, 64, 128, 256, 512, 1024, 2048), (4, 8), lambda n: network(n, 20, n, 1)
    ),
    "graph": Study("edges of a random graph", 1, spread(400, 40), (0, 1), random_graph, fitted=1.0),
    "vector": Study(
        "N of an N × N matrix times a vector",
        2,
        (128, 256, 512, 1024, 2048, 4096, 8192),
        (8, 16),
        matrix_vector,
    ),
}


# ---------------------------------------------------------------- measuring


def measure(subject: Subject, repeats: int) -> dict[str, float]:
    """Give the median seconds of each phase, measured in turn after a warm-up."""
    taken: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for i in range(repeats + 1):
        for phase, seconds in once(subject):
            if i:
                taken[phase].append(seconds)
        gc.collect()  # a tape's calls and values hold each other
    return {phase: median(seconds) for phase, seconds in taken.items()}


def once(subject: Subject) -> Iterator[tuple[str, float]]:
    """Run each phase once; give their seconds."""
    subject.model.zero_grad()
    start = perf_counter()
    loss = subject.loss()
    yield "forward", perf_counter() - start
    start = perf_counter()
    loss.backward()
    yield "backward", perf_counter() - start
    start = perf_counter()
    with gradtrace.record(subject.model) as tape:
        loss = subject.loss()
    yield "recorded forward", perf_counter() - start
    start = perf_counter()
    trace = tape.trace(loss)
    yield "trace", perf_counter() - start
    assert trace.strength


def run(name: str, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Measure one study; points in the order of their sizes."""
    study = STUDIES[name]
    points = []
    for n in sizes:
        subject = study.make(n)
        points.append({"size": subject.size, "seconds": measure(subject, repeats)})
        print(f"{name} {subject.size}: trace {points[-1]['seconds']['trace'] * 1000:.1f} ms", flush=True)
    points.sort(key=lambda point: point["size"])
    largest = points[-max(3, math.ceil(study.fitted * len(points))) :]
    slopes = {phase: slope(largest, phase) for phase in PHASES}
    return {"study": name, "axis": study.axis, "expected": study.expected, "slopes": slopes, "points": points}


def slope(points: list[dict[str, Any]], phase: str) -> float:
    """Fit a straight line to points on logarithmic axes; give its slope."""
    sizes = [math.log(point["size"]) for point in points]
    return linear_regression(sizes, [math.log(point["seconds"][phase]) for point in points]).slope


# ---------------------------------------------------------------- the table and the plots


def markdown(studies: list[dict[str, Any]], on: dict[str, Any], repeats: int) -> str:
    """Write the slopes, and the times at the largest size, for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; medians of {repeats} "
        "interleaved repeats. Slopes of straight lines through the points on logarithmic axes (the larger half of "
        "them; all of the random graphs).",
        "",
        "| against | expected | " + " | ".join(PHASES) + " | largest | trace there, ms | to backward |",
        "|---|--:|" + "--:|" * (len(PHASES) + 3),
    ]
    for s in studies:
        last = s["points"][-1]
        fitted = " | ".join(f"{s['slopes'][phase]:.2f}" for phase in PHASES)
        ms, ratio = last["seconds"]["trace"] * 1000, last["seconds"]["trace"] / last["seconds"]["backward"]
        lines.append(f"| {s['axis']} | {s['expected']} | {fitted} | {last['size']:,} | {ms:.1f} | {ratio:.1f}× |")
    return "\n".join(lines) + "\n"


def plot(study: dict[str, Any], path: Path) -> None:
    """Draw one study as SVG, on logarithmic axes."""
    pyplot: Any = import_module("matplotlib.pyplot")
    # text as text keeps the file small, and a fixed salt keeps it the same for the same numbers
    settings = {"svg.fonttype": "none", "svg.hashsalt": "gradtrace", "font.size": 9}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(5, 3.6), layout="constrained")
        sizes = [point["size"] for point in study["points"]]
        for phase, marker in zip(PHASES, "os^D", strict=True):
            label = f"{phase}, slope {study['slopes'][phase]:.2f}"
            times = [point["seconds"][phase] for point in study["points"]]
            line = 0 if study["study"] == "graph" else 1  # networks of one size differ
            axes.loglog(sizes, times, marker=marker, markersize=3, linewidth=line, label=label)
        axes.set(xlabel=study["axis"], ylabel="seconds", title=f"expected slope {study['expected']}")
        axes.legend(fontsize=7)
        axes.grid(which="major", linewidth=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Measure, draw, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Measure how the time of a trace grows.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--studies", default=",".join(STUDIES), help="names, with commas (default: all)")
    parser.add_argument("--largest", type=int, help="leave out sizes above it (not for graph)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repeat")
    parser.add_argument("--plots", type=Path, help="folder for scaling-*.svg (default: none; needs matplotlib)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.plots:
        import_module("matplotlib").use("Agg")
    repeats, studies = 1 if given.quick else given.repeats, []
    for name in given.studies.split(","):
        sizes = STUDIES[name].quick if given.quick else STUDIES[name].sizes
        if given.largest and name != "graph":
            sizes = tuple(n for n in sizes if n <= given.largest)
        studies.append(run(name, sizes, repeats))
        if given.plots:
            plot(studies[-1], given.plots / f"scaling-{name}.svg")
    on = machine()
    content = {"machine": on, "repeats": repeats, "studies": studies}
    save(given.out, "scaling", markdown(studies, on, repeats), content)


if __name__ == "__main__":
    main()
