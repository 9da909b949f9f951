"""A model on a GPU: are the answers the CPU's, and what does every question cost next to backward there?

A recorded forward pass runs where the model is; the tape is traced on the CPU, to which each tensor that a derivative
needs is brought once. So the check is that a tape recorded on the GPU answers as one recorded on the CPU with the same
weights, in float64, up to rounding; that gradients come back to the device of their leaves; and that a certificate
holds there. Then comes the table of `questions_vs_backward.py`, with the GPU's own backward as the unit.

    python benchmarks/gpu.py                       # without CUDA: a sentence, and exit code 0
    python benchmarks/gpu.py --rows 'trace*,grad Sum,influence*' --repeats 3
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, machine, save
from questions import Step, record
from questions_vs_backward import markdown, run
from torch import Tensor
from workloads import SMALL, WORKLOADS, Subject

from gradtrace import AbsSum, Entropy, Max, Power, Semiring, Sum

CLOSE = 1e-9  # in float64, where the two devices add in another order; relative to the largest of the whole model
LOG2 = 1000.0  # what logarithms are compared relative to: to a millionth
CHECKED = (*SMALL, "mixer", "dense net")
SEMIRINGS = (Sum, AbsSum, Max, Power(8), Entropy)


def both(name: str, device: str) -> tuple[Subject, Subject]:
    """Make a workload on the CPU and its copy on another device, in float64."""
    torch.manual_seed(0)
    here = WORKLOADS[name]()
    x, y = (t.double() if t.is_floating_point() else t for t in (here.x, here.y))
    here = replace(here, model=here.model.double(), x=x, y=y)
    return here, replace(here, model=copy.deepcopy(here.model)).to(device)


def wrong(name: str, device: str = "cuda") -> Iterator[str]:
    """Say in what the two devices' answers differ."""
    here, there = (record(subject) for subject in both(name, device))
    for semiring in SEMIRINGS:
        yield from _grads(here, there, semiring, device)
    for step in (here, there):
        step.traced = step.tape.trace(step.recorded, check=True)
    for leaf in here.tape.leaves:
        if not _same(here.trace.strength[leaf], there.trace.strength[leaf], LOG2):
            yield f"strength of {leaf}"
    tables = [step.trace.influence(of=step.group).to_dataframe() for step in (here, there)]
    if (tables[0]["share"] - tables[1]["share"]).abs().max() > CLOSE:
        yield "influence by example"


def _grads(here: Step, there: Step, semiring: Semiring, device: str) -> Iterator[str]:
    leaves = list(here.tape.leaves)
    answers = [step.tape.grad(step.recorded, leaves, semiring) for step in (here, there)]
    scale = max(_largest(a) for a in answers[0])  # one leaf alone may be rounding noise: the bias of attention's keys
    for leaf, a, b in zip(leaves, *answers, strict=True):
        if b.device.type != device:
            yield f"{semiring.name}: g of {leaf} is on {b.device}"
        if not _same(a, b.cpu(), scale):
            yield f"{semiring.name}: g of {leaf}"


def _largest(a: Tensor) -> float:
    return float(a.abs().max())


def _same(a: Tensor, b: Tensor, scale: float) -> bool:
    known = a.isfinite()
    return torch.equal(known, b.isfinite()) and bool(((a - b)[known].abs() <= CLOSE * scale).all())


def main() -> int:
    """Check, time, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(
        description="Compare a GPU's answers with the CPU's, and time all questions there."
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", default="*", help="globs, with commas (default: all)")
    parser.add_argument("--workloads", default=",".join(SMALL), help="of the table (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, so there is nothing to check or to time")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in CHECKED:
        found = list(wrong(name))
        print(f"{name}: {'as on the CPU' if not found else 'WRONG: ' + '; '.join(found)}", flush=True)
        if found:
            return 1
    on = machine() | {"gpu": torch.cuda.get_device_name(0)}
    for rows in run(given.workloads.split(","), given.rows, given.repeats, "cuda"):
        save(given.out, "gpu", markdown(rows, on, given.repeats), {"machine": on, "workloads": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
