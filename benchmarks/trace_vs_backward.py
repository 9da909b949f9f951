"""What a trace costs next to backpropagation: time and peak memory, model by model.

For each model four things are measured in turn, interleaved in one process so that a slow minute of the machine
falls on all of them, and the median over the repeats is reported: the forward pass, `loss.backward()`, the
recorded forward pass, and `tape.trace(loss)`, the reverse pass under Max that finds every parameter's best path.
Memory is the growth of the process's resident set at its peak; it includes what the allocator holds on to.
The models are small: ratios at another size, batch or number of threads are other ratios.

    python benchmarks/trace_vs_backward.py --repeats 9 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradtrace
from gradtrace.experiments.competition import Competition, next_word_loss

Loss = Callable[[], Tensor]
PHASES = ("forward", "backward", "recorded forward", "trace")


@dataclass(frozen=True)
class Subject:
    """A model, its loss on one batch, and the tensors that enumerate the batch's examples."""

    model: nn.Module
    loss: Loss
    examples: list[Tensor]


def mlp() -> Subject:
    """Four layers of 256, batch 32."""
    sizes = [(256, 256)] * 4
    model = nn.Sequential(*(m for a, b in sizes for m in (nn.Linear(a, b), nn.Tanh())))
    x = torch.randn(32, 256)
    return Subject(model, lambda: model(x).square().mean(), [x])


def recurrent(kind: Callable[..., nn.Module]) -> Subject:
    """Two bidirectional layers of 64 with dropout, batch 8, 20 steps."""
    model = kind(64, 64, num_layers=2, bidirectional=True, dropout=0.1, batch_first=True)
    x = torch.randn(8, 20, 64)
    return Subject(model, lambda: model(x)[0].square().mean(), [x])


def encoder_layer() -> Subject:
    """Width 128, 4 heads, batch 8, 32 positions."""
    model = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    x = torch.randn(8, 32, 128)
    return Subject(model, lambda: model(x).square().mean(), [x])


def gpt2() -> Subject:
    """Two layers of 64, 1,000 words, batch 4, 32 positions; random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=1000, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    ids = torch.randint(1000, (4, 32))
    return Subject(model, lambda: model(input_ids=ids, labels=ids).loss, [ids])


def bert() -> Subject:
    """Two layers of 64, 1,000 words, batch 4, 32 positions; random weights."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config)
    ids = torch.randint(1000, (4, 32))
    return Subject(model, lambda: model(input_ids=ids, labels=ids).loss, [ids])


def competition() -> Subject:
    """RNN, LSTM and GRU of 64 on 4,500 words, batch 8, 20 steps: what `gradtrace compete` traces."""
    model = Competition(("rnn", "lstm", "gru"), 4500, 64, 1)
    words = torch.randint(4500, (8, 20))
    return Subject(model, lambda: next_word_loss(model, words, words), [words])


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "MLP": mlp,
    "RNN": partial(recurrent, nn.RNN),
    "LSTM": partial(recurrent, nn.LSTM),
    "GRU": partial(recurrent, nn.GRU),
    "TransformerEncoderLayer": encoder_layer,
    "GPT-2": gpt2,
    "BERT": bert,
    "competition": competition,
}


class Meter:
    """Seconds and bytes of each phase, one number a repeat."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.bytes: dict[str, list[int]] = {phase: [] for phase in PHASES}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block."""
        before = reset_peak()
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)
        self.bytes[name].append(resident("VmHWM") - before)


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


def measure(subject: Subject, meter: Meter) -> int:
    """Measure each phase once; give the number of recorded operator calls."""
    subject.model.zero_grad()
    with meter.phase("forward"):
        loss = subject.loss()
    with meter.phase("backward"):
        loss.backward()
    with (
        meter.phase("recorded forward"),
        gradtrace.record(subject.model, examples=subject.examples) as tape,
    ):
        loss = subject.loss()
    with meter.phase("trace"):
        trace = tape.trace(loss)
    assert trace.strength
    return len(tape.calls)


def run(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Measure every model `repeats` times, after a warm-up, in turn."""
    torch.manual_seed(0)
    subjects = {name: SUBJECTS[name]() for name in names}
    meters = {name: Meter() for name in names}
    calls = {name: measure(subject, Meter()) for name, subject in subjects.items()}
    for i in range(repeats):
        print(f"repeat {i + 1} of {repeats}", flush=True)
        for name, subject in subjects.items():
            measure(subject, meters[name])
    return [row(name, subjects[name], calls[name], meters[name]) for name in names]


def row(name: str, subject: Subject, calls: int, meter: Meter) -> dict[str, Any]:
    """Give one model's medians, and their ratios to backward."""
    seconds = {phase: statistics.median(meter.seconds[phase]) for phase in PHASES}
    peak = {phase: statistics.median(meter.bytes[phase]) for phase in PHASES}
    return {
        "model": name,
        "what": (getattr(SUBJECTS[name], "func", SUBJECTS[name]).__doc__ or "").strip(),
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "calls": calls,
        "seconds": seconds,
        "peak_bytes": peak,
        "to_backward": {phase: seconds[phase] / seconds["backward"] for phase in PHASES},
    }


def machine() -> dict[str, Any]:
    """Name what the numbers were measured on."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gradtrace": gradtrace.__version__,
    }


def cpu_model() -> str:
    """Read the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown(rows: list[dict[str, Any]], on: dict[str, Any], repeats: int) -> str:
    """Write the table for people."""
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; "
        f"medians of {repeats} interleaved repeats.",
        "",
        "| model | operator calls | backward, ms | forward | recorded forward | trace | peak of trace, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        ratios = " | ".join(f"{r['to_backward'][p]:.1f}×" for p in ("forward", "recorded forward", "trace"))
        backward, peak = r["seconds"]["backward"] * 1000, r["peak_bytes"]["trace"] / 2**20
        lines.append(f"| {r['model']} | {r['calls']} | {backward:.1f} | {ratios} | {peak:.0f} |")
    what = " ".join(f"{r['model']}: {r['what']}" for r in rows)
    lines += ["", f"Times other than backward's are multiples of it. {what}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time a trace next to backpropagation.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--models", default=",".join(SUBJECTS), help="names, with commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    rows, on = run(given.models.split(","), given.repeats), machine()
    table = markdown(rows, on, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "trace_vs_backward.md").write_text(table, encoding="utf-8")
    content = json.dumps({"machine": on, "repeats": given.repeats, "rows": rows}, indent=1)
    (given.out / "trace_vs_backward.json").write_text(content + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
