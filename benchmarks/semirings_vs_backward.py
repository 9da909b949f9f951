"""What a pass under each semiring costs next to `loss.backward()`, on the shape of a small GPT-2.

Four layers of 768, 12 heads, 50,257 words, batch 4 × 128, random weights, float32. One forward pass is recorded; then
backward and one semiring's pass over the tape are timed in turn, interleaved in one process so that a slow
minute of the machine falls on both, and so for one semiring after the other: what a pass of gigabytes frees, a virtual
machine gives back to its host a second later, beside whatever runs then. Medians over the repeats, of the time on the
clock and of the CPU time of all threads, which other programs on the machine disturb less. A pass is `tape.grad`, and
gives g of every parameter: under TopK(8) eight numbers for each scalar, 2.2 GB.

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
from common import machine
from torch import Tensor, nn

import gradtrace

BUDGET = {"power:8": 1.3, "entropy": 6.0, "topk:8": 12.0}  # what was asked for, in units of backward
SHAPES = {"gpt2": (4, 768, 12, 50257, 4, 128), "small": (2, 64, 4, 1000, 4, 32)}  # small: to try the script


def gpt2(shape: str) -> tuple[nn.Module, Tensor]:
    """Make the model and one batch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, words, batch, length = SHAPES[shape]
    config = GPT2Config(vocab_size=words, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(words, (batch, length))


def measure(shape: str, names: list[str], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Give the seconds, on the clock and of CPU time, of each pass and of backward beside it."""
    torch.manual_seed(0)
    model, ids = gpt2(shape)
    with gradtrace.record(model) as tape:
        loss = model(input_ids=ids, labels=ids).loss

    def timed(name: str) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        if name == "backward":
            loss.backward(retain_graph=True)
        else:
            tape.grad(loss, list(tape.leaves), name)
        return time.perf_counter() - start, time.process_time() - cpu

    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        for repeat in range(repeats + 1):
            model.zero_grad()
            (clock0, cpu0), (clock, cpu) = timed("backward"), timed(name)
            took = {"backward": clock0, "backward_cpu": cpu0, "pass": clock, "pass_cpu": cpu}
            print(f"{name}, repeat {repeat} of {repeats}: {took}", flush=True)
            if repeat:  # the first is a warm-up
                seconds[name].append(took)
    return seconds


def row(name: str, times: list[dict[str, float]]) -> dict[str, Any]:
    """Give one pass's medians, and their ratios to backward."""
    clock0, cpu0, clock, cpu = (statistics.median(t[k] for t in times) for k in times[0])
    return {
        "pass": name,
        "budget": BUDGET.get(name),
        "backward": clock0,
        "seconds": clock,
        "seconds_to_backward": clock / clock0,
        "cpu_seconds": cpu,
        "cpu_seconds_to_backward": cpu / cpu0,
    }


def markdown(rows: list[dict[str, Any]], on: dict[str, Any], shape: str, repeats: int) -> str:
    """Write the table for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; "
        f"medians of {repeats} interleaved repeats; shape {shape}: {SHAPES[shape]}.",
        "",
        "| pass | backward, seconds | seconds | of backward | CPU seconds | of backward | asked for |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        budget = f"≤ {r['budget']:g}×" if r["budget"] else ""
        clock, cpu = (f"{r[k]:.2f} | {r[k + '_to_backward']:.2f}×" for k in ("seconds", "cpu_seconds"))
        lines.append(f"| {r['pass']} | {r['backward']:.2f} | {clock} | {cpu} | {budget} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time passes under semirings next to backpropagation.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument(
        "--semirings", default="power:8,entropy,topk:8", help="names, with commas (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    seconds = measure(given.shape, given.semirings.split(","), given.repeats)
    rows = [row(name, times) for name, times in seconds.items()]
    on = machine()
    table = markdown(rows, on, given.shape, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "semirings_vs_backward.md").write_text(table, encoding="utf-8")
    content = {"machine": on, "repeats": given.repeats, "shape": given.shape, "rows": rows, "seconds": seconds}
    (given.out / "semirings_vs_backward.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
