"""The (max, ×) product on a GPU: is it right, and how long does it take next to `torch.mm`?

For each shape: the kernel's values and indices are compared with a slow definition on the same device, bit by bit;
then the kernel (with indices, and values only) and `torch.mm` in float32 (TF32 off) and in bfloat16 are timed with
device events, interleaved, after a warm-up; medians are reported, and the time as a multiple of the pipe limit.

**The pipe limit.** A product needs one multiplication and one maximum. On compute capability 8.0 and 9.0 a
multiprocessor starts 128 float32 multiplications a clock (8.0: 64) but only 64 maxima, compares or selects, and 128
instructions in all. So values alone take at least max(1 / 64, 2 / 128) of a clock a product on each multiprocessor:

    seconds ≥ products / (multiprocessors · clock · 64)

The index adds a compare and a select for each block of k. The clock is the highest that the device reports, so
the limit is one that a device under load, which clocks lower, does not reach. A matrix product by
fused multiply-adds has a limit half as high, and the tensor cores, which know no maximum, are far below.

What the compiler makes of it is counted in the machine code, which needs no GPU (`--code`): instructions a product in
the innermost loop, registers, spills.

    python benchmarks/gpu_product.py                  # checks and times; without CUDA: a sentence, and exit code 1
    python benchmarks/gpu_product.py --quick          # small shapes
    python benchmarks/gpu_product.py --code           # counts instructions, on any machine that has triton
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradtrace.kernels.triton_product import CONFIGS, DOUBLE, Config, choose, max_product, max_values

MAXIMA_PER_CLOCK = 64  # of one multiprocessor, compute capability 8.0 and 9.0
TARGET = 90  # compute capability whose machine code `--code` looks at


@dataclass(frozen=True)
class Shape:
    """A product that a trace needs: rows × inner by columns × inner."""

    name: str
    batch: int
    rows: int
    columns: int
    inner: int

    @property
    def products(self) -> int:
        """How many numbers are compared."""
        return self.batch * self.rows * self.columns * self.inner


# Those of a trace of the models for which the project states goals: 4 × 128 tokens of a GPT-2 of width 768, an LSTM
# of 650 on 20 × 35 words, layers of 2048 at batch 512; and two that fill the device.
SHAPES = (
    Shape("GPT-2, towards the activations before the output layer", 1, 512, 768, 50_257),
    Shape("GPT-2, towards the output layer's weights", 1, 50_257, 768, 512),
    Shape("GPT-2, through the feed-forward layer", 1, 512, 768, 3072),
    Shape("GPT-2, towards the feed-forward weights", 1, 3072, 768, 512),
    Shape("GPT-2, attention heads", 48, 128, 64, 128),
    Shape("LSTM, one step towards the hidden state", 1, 20, 650, 2600),
    Shape("LSTM, towards the output layer's weights", 1, 10_000, 650, 700),
    Shape("MLP, towards the activations", 1, 512, 2048, 2048),
    Shape("MLP, towards the weights", 1, 2048, 2048, 512),
    Shape("square, 4096", 1, 4096, 4096, 4096),
    Shape("square, 8192", 1, 8192, 8192, 8192),
)
QUICK = (Shape("odd", 2, 65, 130, 77), Shape("square, 512", 1, 512, 512, 512))


def operands(shape: Shape, kind: str, device: str) -> tuple[Tensor, Tensor]:
    """Draw operands: "normal", or "integers" of few values, most of whose maxima are ties."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (shape.batch, shape.rows, shape.inner), (shape.batch, shape.columns, shape.inner)
    if kind == "integers":
        a, w = (torch.randint(-3, 4, size, generator=generator, device=device).float() for size in sizes)
    else:
        a, w = (torch.randn(size, generator=generator, device=device) for size in sizes)
    return a.abs(), w


def definition(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Look at one k after the other; a later one has to be strictly larger."""
    best = a.new_zeros(a.shape[0], a.shape[1], w.shape[1])
    arg = torch.full_like(best, -1, dtype=torch.int64)
    for k in range(a.shape[2]):
        product = a[:, :, None, k] * w[:, None, :, k].abs()
        better = product > best
        arg.masked_fill_(better, k)
        best = torch.where(better, product, best)
    return best, arg


def wrong(shape: Shape, device: str, configs: Sequence[Config | None]) -> list[str]:
    """List the operands and configurations (None: the default) for which kernel and definition differ."""
    found = []
    for kind in ("normal", "integers"):
        a, w = operands(shape, kind, device)
        best, arg = definition(a, w)
        for config in configs:
            values, index = max_product(a, w, config=config)
            if not (torch.equal(values, best) and torch.equal(index, arg)):
                found.append(f"{kind}, {config}")
        if not torch.equal(max_values(a, w), best):
            found.append(f"{kind}, values alone")
    return found


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Give the median seconds of each, measured in turn with device events."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 2):
        for name, run in runs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            if i >= 2:  # the first ones compile, and wake the device
                taken[name].append(start.elapsed_time(end) / 1000)
    return {name: statistics.median(values) for name, values in taken.items()}


def limit(shape: Shape, multiprocessors: int, clock: float) -> float:
    """Give the seconds that the maxima alone take."""
    return shape.products / (multiprocessors * clock * MAXIMA_PER_CLOCK)


def measure(shape: Shape, repeats: int, multiprocessors: int, clock: float) -> dict[str, Any]:
    """Time one shape under every configuration, next to matrix products."""
    a, w = operands(shape, "normal", "cuda")
    low = a.bfloat16(), w.bfloat16()
    default = choose(a, w)
    runs: dict[str, Callable[[], object]] = {
        "float32 mm": lambda: a @ w.mT,
        "bfloat16 mm": lambda: low[0] @ low[1].mT,
        "with index": lambda: max_product(a, w),
        "values only": lambda: max_values(a, w),
    }
    runs |= {f"config {i}": lambda c=c: max_product(a, w, config=c) for i, c in enumerate(CONFIGS)}
    seconds = interleaved(runs, repeats)
    sizes = {"batch": shape.batch, "rows": shape.rows, "columns": shape.columns, "inner": shape.inner}
    tried = [seconds.pop(f"config {i}") for i in range(len(CONFIGS))]
    return {
        "shape": shape.name,
        **sizes,
        "seconds": seconds,
        "limit": limit(shape, multiprocessors, clock),
        "config": CONFIGS.index(default),
        "seconds_by_config": tried,
    }


def machine() -> dict[str, Any]:
    """Name what the numbers were measured on."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "clock": highest_clock(properties),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def highest_clock(properties: Any) -> float:
    """Read the highest clock of the multiprocessors, in Hz."""
    if rate := getattr(properties, "clock_rate", 0):  # in kHz; older versions of PyTorch do not tell
        return rate * 1e3
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return float(lines[0]) * 1e6


def markdown(rows: list[dict[str, Any]], on: dict[str, Any], repeats: int) -> str:
    """Write the table for people."""
    lines = [
        f"{on['gpu']} ({on['multiprocessors']} multiprocessors at up to {on['clock'] / 1e9:.2f} GHz), torch "
        f"{on['torch']}, triton {on['triton']}; medians of {repeats} interleaved repeats. Values and indices were "
        "compared with the definition, bit by bit.",
        "",
        "| product | b × i × j × k | fp32 mm, ms | bf16 mm, ms | with index, ms | to fp32 mm | to bf16 mm "
        "| to the pipe limit | values only, to the limit | best configuration / default |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        s, sizes = r["seconds"], " × ".join(str(r[n]) for n in ("batch", "rows", "columns", "inner"))
        numbers = [f"{s[n] * 1e3:.3f}" for n in ("float32 mm", "bfloat16 mm", "with index")]
        numbers += [f"{s['with index'] / s[n]:.2f}×" for n in ("float32 mm", "bfloat16 mm")]
        numbers += [f"{s[n] / r['limit']:.2f}×" for n in ("with index", "values only")]
        numbers += [f"{min(r['seconds_by_config']) / s['with index']:.2f}"]
        lines.append(" | ".join([f"| {r['shape']}", sizes, *numbers]) + " |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- what the compiler makes of it


def compiled(config: Config, number: str, *, track: bool) -> Any:
    """Compile the kernel for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradtrace.kernels.triton_source import largest

    constants: dict[str, Any] = config.constants | {"TRACK": track, "GUARD": False}
    warps = constants.pop("num_warps")
    height, width = config.tile
    types = {
        "a": f"tensordesc<{number}[1,{height},{config.block}]>",
        "w": f"tensordesc<{number}[1,{width},{config.block}]>",
        "best": f"*{number}",
        "block": "*i32",
    }
    names: list[str] = largest.arg_names
    source = ASTSource(
        fn=largest,
        signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in ("best", "block", "inner")},
    )
    return triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options={"num_warps": warps})


def tool(name: str, *flags: str, binary: bytes) -> str:
    """Run one of the CUDA tools that come with triton on machine code."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([program, *flags, file.name], capture_output=True, text=True, check=True).stdout


def innermost(disassembly: str) -> list[str]:
    """Give the opcodes of the shortest loop that multiplies."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in disassembly.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        instruction = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line)
        if label:
            labels[label[1]] = len(opcodes)
        elif instruction:
            opcodes.append(instruction[1])
            target = re.search(r"\.L_x_\d+", instruction[2])
            if instruction[1].startswith("BRA") and target and target[0] in labels:
                loops.append(opcodes[labels[target[0]] :])
    return min((x for x in loops if sum(o.startswith(("FMUL", "DMUL")) for o in x) > 1), key=len)


def code_row(config: Config, number: str, *, track: bool) -> dict[str, Any]:
    """Count the instructions of the innermost loop, for each product."""
    binary = compiled(config, number, track=track).asm["cubin"]
    counts = Counter(opcode.split(".")[0] for opcode in innermost(tool("nvdisasm", "-c", binary=binary)))
    products = config.thick * config.wide * config.block
    usage = dict(re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "-res-usage", binary=binary)))
    return {
        "tile": config.tile,
        "block": config.block,
        "number": number,
        "track": track,
        "per_product": counts.total() / products,
        "opcodes": {name: n / products for name, n in counts.most_common(6)},
        "registers": int(usage["REG"]),
        "spilled_bytes": int(usage["STACK"]),
    }


def code_table(*, quick: bool) -> str:
    """Say what the compiler makes of every configuration, or of the first few."""
    import triton

    rows = [code_row(c, "fp32", track=track) for c in CONFIGS[: 2 if quick else None] for track in (True, False)]
    rows += [code_row(c, "fp64", track=True) for c in DOUBLE[: 1 if quick else None]]
    lines = [
        f"Machine code for compute capability {TARGET / 10:.1f} by triton {triton.__version__}: instructions of the "
        "innermost loop, for each product.",
        "",
        "| dtype | index | tile | block of k | instructions | of these | registers | spilled bytes |",
        "|---|---|---|--:|--:|---|--:|--:|",
    ]
    for r in rows:
        parts = ", ".join(f"{name} {n:.2f}" for name, n in r["opcodes"].items())
        tile, yes = " × ".join(map(str, r["tile"])), "yes" if r["track"] else "no"
        numbers = f"{r['per_product']:.2f} | {parts} | {r['registers']} | {r['spilled_bytes']}"
        lines.append(f"| {r['number']} | {yes} | {tile} | {r['block']} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Check, time, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Check and time the (max, ×) product on a GPU.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small shapes, 3 repeats; a few configurations")
    parser.add_argument("--code", action="store_true", help="only count the instructions that the compiler makes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    if given.code:
        print(code_table(quick=given.quick))
        return 0
    if not torch.cuda.is_available():
        print("gpu_product: no CUDA device here, so there is nothing to time (--code works without one)")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    shapes, repeats = (QUICK, 3) if given.quick else (SHAPES, given.repeats)
    for shape in {*QUICK, *shapes}:  # every configuration on the small ones, where every tile has its odd edges
        if found := wrong(shape, "cuda", (None, *CONFIGS) if shape in QUICK else (None,)):
            print(f"gpu_product: WRONG for {shape}: {'; '.join(found)}")
            return 1
    on = machine()
    rows = [measure(shape, repeats, on["multiprocessors"], on["clock"]) for shape in shapes]
    table = markdown(rows, on, repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu_product.md").write_text(table, encoding="utf-8")
    content = json.dumps({"machine": on, "repeats": repeats, "rows": rows}, indent=1)
    (given.out / "gpu_product.json").write_text(content + "\n", encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
