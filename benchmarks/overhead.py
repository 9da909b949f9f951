"""What a monitor costs: the share of a training's time that it states, next to what it is; and whether a budget holds.

Time is CPU time (`time.process_time`) on one thread, also the monitor's own clock, so that neighbours disturb it less.
The share that is true cannot be read off one training. Two are made in turn, a few steps of the one and as many of the
other, with the same batches: with a monitor and without. What the first takes more, of all that it takes, is the share;
their parts are compared in pairs, so that what slows the machine down falls on both, and the pairs without a trace say
by how much the difference is off by chance.

    python benchmarks/overhead.py                  # the table in results/
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from common import RESULTS, machine, save
from torch import nn
from workloads import Subject, gpt2, gru, language

from gradtrace.monitor import Monitor
from gradtrace.monitor.clock import Clock

NAME = "overhead"


def small_gpt2() -> Subject:
    """GPT-2 shape, for many steps: 2 layers, d 768, 12 heads, vocabulary 2,000, one row of 32 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=2000, n_layer=2, n_positions=32, use_cache=False)
    ids = torch.randint(config.vocab_size, (1, 32))
    return Subject(GPT2LMHeadModel(config), lambda model, x, y: model(input_ids=x, labels=y).loss, ids, ids)


def small_gru() -> Subject:
    """Small GRU: 32 units, vocabulary 200, batch 4 × 16."""
    return language(nn.GRU, 200, 32, 1, 4, 16, cells=True)


# a model, the parameters that are asked about, how many steps with a trace every so often, and within a budget
MODELS: dict[str, tuple[Callable[[], Subject], str, int, int]] = {
    "small GRU": (small_gru, "recurrent*", 160, 15000),
    "GRU": (gru, "recurrent*", 160, 5000),
    "small GPT-2": (small_gpt2, "transformer.wpe*", 48, 1200),
    "GPT-2": (gpt2, "transformer.wpe*", 16, 0),
}
TRACES = 8  # in the steps with a trace every so often
BUDGET = 0.05


class Training:
    """A model that is trained, with a monitor or without."""

    def __init__(self, subject: Subject, monitor: dict[str, Any] | None) -> None:
        self.subject = replace(subject, model=copy.deepcopy(subject.model))
        self.optimizer = torch.optim.SGD(self.subject.model.parameters(), lr=1e-3)
        self.monitor = None if monitor is None else Monitor(self.subject.model, folder=None, **monitor)
        if self.monitor is not None:
            self.monitor.clock = Clock(time.process_time)
        self.seconds = 0.0

    def run(self, steps: int) -> None:
        """Train, and add up the CPU time that it takes."""
        began = time.process_time()
        for _ in range(steps):
            if self.monitor is None:
                loss = self.subject.loss()
            else:
                with self.monitor.step(examples=self.subject.x):
                    loss = self.subject.loss()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.seconds += time.process_time() - began


def compare(name: str, steps: int, part: int, **options: Any) -> dict[str, Any]:
    """Train a model twice, in turn; the clock of the monitored one is read at its own parts' ends alone."""
    torch.manual_seed(0)
    make, of, *_ = MODELS[name]
    subject = make()
    Training(subject, None).run(2)  # a warm-up
    plain, watched = Training(subject, None), Training(subject, {"of": of, **options})
    monitor = watched.monitor
    assert monitor is not None
    own = Own(watched)
    monitor.clock.now = own.now
    apart, worst = [], 0.0
    for _ in range(0, steps, part):
        made, before = (monitor.traces, monitor._rehearsed), watched.seconds - plain.seconds
        plain.run(part)
        own.go()
        watched.run(part)
        own.halt()
        worst = max(worst, monitor.share)
        if (monitor.traces, monitor._rehearsed) == made:  # no trace in it
            apart.append(watched.seconds - plain.seconds - before)
    stated, true = monitor.share, (watched.seconds - plain.seconds) / watched.seconds
    chance = stdev(apart) * (steps / part) ** 0.5 / watched.seconds if len(apart) > 1 else None
    return {
        "model": name,
        "what": (make.__doc__ or "").strip(),
        "options": dict(options),
        "steps": steps,
        "traces": monitor.traces,
        "failures": monitor.failures,
        "part": part,
        "seconds": watched.seconds,
        "stated": stated,
        "most_stated": worst,
        "measured": true,
        "standard_error": chance,
    }


class Own:
    """CPU time of one of two trainings that run in turn."""

    def __init__(self, training: Training) -> None:
        self.training, self.before = training, 0.0
        self.since: float | None = None

    def go(self) -> None:
        """Begin a part."""
        self.since = time.process_time()

    def halt(self) -> None:
        """End it."""
        assert self.since is not None
        self.before, self.since = self.before + time.process_time() - self.since, None

    def now(self) -> float:
        """Give the time that the training has run."""
        return self.before + (time.process_time() - self.since if self.since is not None else 0.0)


def markdown(rows: list[dict[str, Any]], on: dict[str, Any]) -> str:
    """Write the table for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} thread, torch {on['torch']}, Python {on['python']}; CPU time of trainings with "
        'a monitor and without, a few steps of each in turn. "At most" is the largest share stated at any time.',
        "",
        "| model | monitor | steps | traces | share it states | at most | share measured | stated / measured |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        off = "" if r["standard_error"] is None else f" ± {r['standard_error']:.1%}"
        options = ", ".join(f"{k}={v}" for k, v in r["options"].items())
        lines.append(
            f"| {r['what'].split(';')[0].rstrip('.')} | {options} | {r['steps']} | {r['traces']} "
            f"| {r['stated']:.1%} | {r['most_stated']:.1%} | {r['measured']:.1%}{off} "
            f"| {r['stated'] / r['measured']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Compare a monitor's stated share of the time with the measured one.")
    parser.add_argument("--models", default=",".join(MODELS), help="with commas (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.models.split(","):
        some, many = (int(given.scale * steps) for steps in MODELS[name][2:])
        every = max(1, some // TRACES)
        rows.append(compare(name, some, max(1, every // 2), every=every))
        if many:
            rows.append(compare(name, many, max(1, every // 2), every=1, at_most=BUDGET))
        print(markdown(rows, machine()), flush=True)
    on, file = machine(), given.out / f"{NAME}.json"
    known = json.loads(file.read_text())["rows"] if file.exists() else []  # of other models, from runs before
    rows = [r for r in known if r["model"] not in given.models.split(",") and "most_stated" in r] + rows
    save(given.out, NAME, markdown(rows, on), {"machine": on, "rows": rows})


if __name__ == "__main__":
    main()
