"""Every component of `gradtrace compete`: certified? each example as alone? and which tasks does it solve alone?

Writes the table into docs/components.md, from benchmarks/results/components.json, which has what is done already: so it
can be stopped, and goes on. A number of samples is where a model of one component, trained with Adam, was first seen to
score what its task calls solved; where that did not happen within so many samples, there is none.

    python benchmarks/components.py [--components A,B,…] [--tasks A,B,…] [--samples 40000] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import gradtrace
from gradtrace.experiments.components import COMPONENTS
from gradtrace.experiments.sequences import IGNORED, Batch
from gradtrace.experiments.tasks import TASKS, Task
from gradtrace.experiments.training import training_step

HIDDEN, BATCH, RATE, EVERY = 16, 32, 0.002, 25  # every so many steps there is an evaluation
PAGE, DONE = Path("docs/components.md"), Path("benchmarks/results/components.json")
NOISE = "{}.qkv.bias"  # that of the keys has no gradient, since a softmax does not see it: greedy paths follow rounding
START, END = "<!-- table: benchmarks/components.py -->", "<!-- end of table -->"


def trace_of(model: torch.nn.Module, task: Task, batch: Batch, *, check: bool = False) -> gradtrace.Trace:
    with gradtrace.record(model, examples=(batch.inputs, batch.targets)) as tape:
        loss = task.loss(model(batch.inputs), batch)
    return tape.trace(loss, check=check)


def proof(name: str) -> dict[str, Any]:
    """Certify a component, and compare each example's strengths with those that it has alone, in float64."""
    task = TASKS["reversal"]
    model, batch = task.model((name,), HIDDEN, 1).double(), task.training(1, 0, 4)
    trace, asked = trace_of(model, task, batch, check=True), (batch.targets != IGNORED).sum(1)
    worst = 0.0
    for b in range(len(batch)):
        alone, share = trace_of(model, task, batch[b : b + 1]), math.log2(int(asked[b]) / int(asked.sum()))
        for kind in ("best", "greedy"):
            for parameter, leaf in trace.tape.leaves.items():
                ours = trace.forest(kind, per_example=True).log2[leaf.id][b]
                expected = alone.forest(kind).log2[alone.tape.leaves[parameter].id][0] + share
                worst = max(worst, 0.0 if (kind, parameter) == ("greedy", NOISE.format(name)) else gap(ours, expected))
    assert trace.certificate is not None
    parameters = sum(p.numel() for p in model.get_submodule(name).parameters())
    found = {"difference": trace.certificate.difference, "tolerance": trace.certificate.tolerance, "alone": worst}
    return {"parameters": parameters, "fallbacks": trace.fallbacks} | found


def gap(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Give the largest difference; infinity where one has a path and the other has none."""
    return float(torch.where(ours == expected, 0.0, ours - expected).abs().max())


def solve(name: str, task: Task, seed: int, samples: int) -> dict[str, Any]:
    """Train a component alone until it solves a task, or has had so many samples."""
    model, held_out = task.model((name,), HIDDEN, seed), task.held_out()
    optimizer, best, step = torch.optim.Adam(model.parameters(), lr=RATE), 0.0, 0
    while best < task.solved and step * BATCH < samples:
        batch = task.training(seed, step, BATCH)
        training_step(model, optimizer, task.loss(model(batch.inputs), batch))
        step += 1
        if step % EVERY == 0:
            best = max(best, task.evaluate(model, held_out).score)
    solved = best >= task.solved
    return {"samples": step * BATCH if solved else None, "best": None if solved else math.floor(1000 * best) / 1000}


def table(done: dict[str, Any], samples: int) -> str:
    """Write down what is known."""
    names = [name for name in COMPONENTS if name in done["proof"]]
    lines = [
        f"Width {HIDDEN}, batches of {BATCH}, Adam {RATE}, seed {done['seed']}, torch {torch.__version__}; evaluated "
        f"every {EVERY * BATCH} samples, up to {samples:,}.",
        "",
        "| component | parameters | certificate | each example as alone | " + " | ".join(TASKS) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(TASKS),
    ]
    for name in names:
        proved = done["proof"][name]
        cells = [name, f"{proved['parameters']:,}", f"{proved['difference']:.0e}", f"{proved['alone']:.0e}"]
        cells += [_cell(done["solved"].get(f"{name} {task}")) for task in TASKS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "…"
    return f"({found['best']:.1%})" if found["samples"] is None else f"**{found['samples']:,}**"


def write(done: dict[str, Any], samples: int) -> None:
    """Write the progress, and the table where the page has its place for it."""
    DONE.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(START)], page[page.index(END) :]
    PAGE.write_text(f"{before}{START}\n{table(done, samples)}\n{after}", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__)
    add = options.add_argument
    add("--components", default=",".join(COMPONENTS))
    add("--tasks", default=",".join(TASKS))
    add("--samples", type=int, default=40_000)
    add("--seed", type=int, default=1)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    torch.set_num_threads(1)
    done = json.loads(DONE.read_text()) if DONE.exists() else {"seed": given.seed, "proof": {}, "solved": {}}
    names = given.components.split(",")
    for name in names:
        if name not in done["proof"]:
            done["proof"][name] = proof(name)
            write(done, given.samples)
    for task in given.tasks.split(","):
        for name in names:
            if f"{name} {task}" not in done["solved"]:
                done["solved"][f"{name} {task}"] = found = solve(name, TASKS[task], given.seed, given.samples)
                print(f"{name} on {task}: {found}", flush=True)
                write(done, given.samples)


if __name__ == "__main__":
    main()
