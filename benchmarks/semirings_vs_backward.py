"""What a pass under each semiring costs next to `loss.backward()`, on the shape of a small GPT-2.

Four layers of 768, 12 heads, 50,257 words, batch 4 × 128, random weights, float32. One forward pass is recorded; then
backward and each semiring's pass over the tape are timed in turn, interleaved in one process so that a slow
minute of the machine falls on all of them. Medians over the repeats. A pass ends with g of every parameter.

    python benchmarks/semirings_vs_backward.py --repeats 5 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trace_vs_backward import machine

import gradtrace
from gradtrace.ask import gradings
from gradtrace.engine import reverse
from gradtrace.semirings import named

BUDGET = {"power:8": 1.3, "entropy": 6.0, "topk:8": 12.0}  # what was asked for, in units of backward
SHAPES = {"gpt2": (4, 768, 12, 50257, 4, 128), "small": (2, 64, 4, 1000, 4, 32)}  # small: to try the script


def gpt2(shape: str) -> tuple[nn.Module, Tensor]:
    """Make the model and one batch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, words, batch, length = SHAPES[shape]
    config = GPT2Config(vocab_size=words, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(words, (batch, length))


def run_pass(tape: gradtrace.Tape, loss: Tensor, name: str) -> None:
    """Walk the tape under a semiring, keeping g of every leaf."""
    (asked,) = gradings(tape.record, tape.value_of(loss), [named(name)])
    kept = {}

    def keep(value: Any, g: Any) -> None:
        if value.call is None:
            kept[value.id] = g

    with torch.no_grad():
        reverse(tape.record, tape.value_of(loss), asked.carrier, keep)
    assert len(kept) >= len(tape.leaves)


def measure(shape: str, names: list[str], repeats: int) -> dict[str, list[float]]:
    """Give the seconds of backward and of each pass."""
    torch.manual_seed(0)
    model, ids = gpt2(shape)
    with gradtrace.record(model) as tape:
        loss = model(input_ids=ids, labels=ids).loss
    seconds: dict[str, list[float]] = {"backward": [], **{name: [] for name in names}}
    for repeat in range(repeats + 1):
        for name in seconds:
            model.zero_grad()
            start = time.perf_counter()
            if name == "backward":
                loss.backward(retain_graph=True)
            else:
                run_pass(tape, loss, name)
            took = time.perf_counter() - start
            print(f"repeat {repeat} of {repeats}: {name} {took:.2f} s", flush=True)
            if repeat:  # the first is a warm-up
                seconds[name].append(took)
    return seconds


def markdown(rows: list[dict[str, Any]], on: dict[str, Any], shape: str, repeats: int) -> str:
    """Write the table for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; "
        f"medians of {repeats} interleaved repeats; shape {shape}: {SHAPES[shape]}.",
        "",
        "| pass | seconds | of backward | asked for |",
        "|---|--:|--:|--:|",
    ]
    for r in rows:
        budget = f"≤ {r['budget']:g}×" if r["budget"] else ""
        lines.append(f"| {r['pass']} | {r['seconds']:.2f} | {r['to_backward']:.2f}× | {budget} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time passes under semirings next to backpropagation.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--semirings", default=",".join(BUDGET), help="names, with commas (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    seconds = measure(given.shape, given.semirings.split(","), given.repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {"pass": n, "seconds": s, "to_backward": s / medians["backward"], "budget": BUDGET.get(n)}
        for n, s in medians.items()
    ]
    on = machine()
    table = markdown(rows, on, given.shape, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "semirings_vs_backward.md").write_text(table, encoding="utf-8")
    content = {"machine": on, "repeats": given.repeats, "shape": given.shape, "rows": rows, "seconds": seconds}
    (given.out / "semirings_vs_backward.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
