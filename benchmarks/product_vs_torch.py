"""The (max, ×) product on the CPU next to `torch.mm` and to what people have today.

    best[b,i,j] = max_k a[b,i,k]·|w[b,j,k]|, and the smallest k that reaches it

Contestants: a matrix product of the same shape (the yardstick), gradtrace's C++ kernel and its reference in PyTorch,
the package `torch_semiring_einsum`, and a broadcast compiled by inductor (which needs a C++ compiler). Values alone,
and with the index. Their results are compared before anything is timed. What is not installed is left out,
and said so.

Operands are Gaussian; log-normal with σ = 2; and *real*: a small `gradtrace compete` model is trained, a batch is
traced, and the operands of the largest products of its reverse pass are taken; and after its first step. How much a
kernel can leave out depends on the tails of the operands, so a ratio holds for operands like these.

    python benchmarks/product_vs_torch.py --out benchmarks/results
    python benchmarks/product_vs_torch.py --operands real.pt    # keep the real operands, or take those of last time
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, medians, save
from torch import Tensor

import gradtrace
from gradtrace.backward.elements import reverse
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.corpus import Corpus, default_text, make_corpus
from gradtrace.experiments.options import Options
from gradtrace.experiments.training import held_out_windows, training_step, training_window
from gradtrace.semirings.base import Element, Extreme, aligned, max_product

Result = tuple[Tensor, Tensor | None]
Product = Callable[[Tensor, Tensor], Result]


@dataclass(frozen=True)
class Operands:
    """Two operands, b × i × k and b × j × k, and where they come from."""

    kind: str
    what: str
    a: Tensor
    w: Tensor

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """b, i, j, k."""
        return self.a.shape[0], self.a.shape[1], self.w.shape[1], self.a.shape[2]

    @property
    def products(self) -> int:
        """How many numbers are compared."""
        return int(torch.Size(self.sizes).numel())


# ---------------------------------------------------------------- operands

SHAPES = {
    "towards activations": (1, 512, 768, 768),
    "towards weights": (1, 768, 768, 512),
    "one step of an LSTM": (1, 20, 650, 2600),
    "attention heads": (48, 128, 64, 128),
}
QUICK = {"attention heads": (3, 8, 4, 8)}


def random_operands(shapes: dict[str, tuple[int, int, int, int]]) -> Iterator[Operands]:
    """Draw operands, Gaussian and log-normal with random signs."""
    generator = torch.Generator().manual_seed(0)
    for what, (b, i, j, k) in shapes.items():
        a, w = (torch.randn(b, n, k, generator=generator) for n in (i, j))
        yield Operands("Gaussian", what, a.abs(), w)
        yield Operands("log-normal(σ=2)", what, (2 * a).exp(), (2 * w).exp() * torch.randn_like(w).sign())


@dataclass(frozen=True)
class Observer(Extreme):
    """The carrier of best paths, which also keeps the operands of the largest products of each shape."""

    seen: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def contract(self, weight: Tensor, g: Element) -> Element:
        values, _ = aligned(g[0], g[1]) if g[0].numel() else (g[0], g[1])  # each row in units of its largest
        sizes = (*values.shape[:2], *weight.shape[1:])
        if sizes not in self.seen and weight.numel() and values.numel():
            self.seen[sizes] = values.float().contiguous(), weight.float().contiguous()
        return super().contract(weight, g)


def trained(options: Options) -> tuple[Competition, Corpus]:
    """Train a model as `gradtrace compete` does."""
    corpus = make_corpus(default_text(), options.vocabulary)
    model = Competition(options.components, len(corpus.vocabulary), options.hidden, options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    for step in range(options.steps):
        window = training_window(corpus.training, step, options.batch, options.bptt, 1)
        training_step(model, optimizer, next_word_loss(model, *window))
    return model, corpus


def real_operands(options: Options, count: int) -> list[Operands]:
    """Give the operands of the largest products of a trained model's reverse pass, each of another shape."""
    model, corpus = trained(options)
    windows = held_out_windows(corpus.held_out, options.bptt)
    words, targets = (w[torch.arange(options.batch) * len(w) // options.batch] for w in windows)  # evenly spread
    with gradtrace.record(model.eval(), examples=(words, targets)) as tape:
        loss = next_word_loss(model, words, targets)
    observer = Observer()
    reverse(tape.record, tape.value_of(loss), observer, lambda value, g: None)
    kind = f"real, after {options.steps} step{'s' * (options.steps > 1)}"
    found = [Operands(kind, "compete model", a, w) for a, w in observer.seen.values()]
    return sorted(found, key=lambda o: -o.products)[:count]


def kept(path: Path | None, options: Options, count: int) -> list[Operands]:
    """Give the real operands, from a file if it exists; a path that does not exist is written."""
    if path is not None and path.exists():
        return [Operands(**fields) for fields in torch.load(path, weights_only=True)]
    made = [*real_operands(options, count), *real_operands(replace(options, steps=1), 2)]
    if path is not None:
        torch.save([vars(o) for o in made], path)
    return made


# ---------------------------------------------------------------- contestants


def matrix_product(a: Tensor, w: Tensor) -> Result:
    """Give a sum instead of a maximum: the yardstick."""
    return a @ w.mT, None


def reference(a: Tensor, w: Tensor) -> Result:
    """Multiply and look, block by block, in PyTorch."""
    return max_product(a, w.abs())


def native() -> tuple[Product | None, Product | None]:
    """Find the C++ kernel, which gives the index too."""
    module = import_module("gradtrace.kernels.native")
    if not module.available():
        raise ImportError("gradtrace has no compiled kernels here")
    return None, lambda a, w: module.max_product(a, w)[:2]


def einsum() -> tuple[Product | None, Product | None]:
    """Set up `torch_semiring_einsum`: its own extension interface for values, its Viterbi semiring for the index."""
    package: Any = import_module("torch_semiring_einsum")
    equation = package.compile_equation("bik,bjk->bij")

    def largest(x: Tensor, y: Tensor) -> None:
        torch.maximum(x, y, out=x)

    def times(x: Tensor, y: Tensor) -> None:
        x *= y

    def rule(compute: Any) -> Any:
        return compute(largest, lambda x, dims: x.amax(dims) if dims else x, times)

    def values(a: Tensor, w: Tensor) -> Result:
        size = package.AUTOMATIC_BLOCK_SIZE
        return package.semiring_einsum_forward(equation, [a, w.abs()], size, rule), None

    def both(a: Tensor, w: Tensor) -> Result:  # it adds logarithms, so values are rounded otherwise
        best, arg = package.log_viterbi_einsum_forward(
            equation, a.log(), w.abs().log(), block_size=package.AUTOMATIC_BLOCK_SIZE
        )
        return best.exp(), arg.squeeze(-1)

    return values, both


@cache
def inductor() -> tuple[Product | None, Product | None]:
    """Compile a broadcast, for each shape anew."""
    settings: Any = import_module("torch._dynamo.config")
    settings.recompile_limit = 256  # beyond it, it would quietly stop to compile
    values = torch.compile(lambda a, w: (a[:, :, None] * w.abs()[:, None]).amax(-1), dynamic=False)
    both = torch.compile(lambda a, w: (a[:, :, None] * w.abs()[:, None]).max(-1), dynamic=False)
    return lambda a, w: (values(a, w), None), lambda a, w: tuple(both(a, w))


CONTESTANTS: dict[str, Callable[[], tuple[Product | None, Product | None]]] = {
    "torch.mm": lambda: (matrix_product, None),
    "gradtrace C++": native,
    "gradtrace reference": lambda: (None, reference),
    "torch_semiring_einsum": einsum,
    "inductor": inductor,
}


def contestants(names: list[str]) -> tuple[dict[str, Product], dict[str, str]]:
    """Give the products by name, and why others are left out."""
    found: dict[str, Product] = {}
    missing: dict[str, str] = {}
    for name in names:
        ready, why = tried(name)
        found |= ready
        if why:
            missing[name] = why
            print(f"left out: {name} ({why})", flush=True)
    return found, missing


def tried(name: str) -> tuple[dict[str, Product], str]:
    """Give a contestant's products after one call of each, or why there are none."""
    probe = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
    try:
        pair = zip(("values", "index"), CONTESTANTS[name](), strict=True)
        ready = {f"{name}, {suffix}": product for suffix, product in pair if product is not None}
        for product in ready.values():
            product(*probe)
    except (ImportError, OSError, RuntimeError) as error:  # not installed, not built, or no compiler
        return {}, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ready, ""


def check(products: dict[str, Product], given: Operands) -> None:
    """Raise unless all give the same; bit by bit where they are gradtrace's."""
    best, arg = reference(given.a, given.w)
    for name, product in products.items():
        if product is matrix_product:
            continue
        values, index = product(given.a, given.w)
        if name.startswith("gradtrace"):
            assert torch.equal(values, best), f"{name}: another value for {given.what}, {given.kind}"
            assert arg is not None
            same = index is None or bool(((index == arg) | (best == 0)).all())
            assert same, f"{name}: another index for {given.what}, {given.kind}"
        torch.testing.assert_close(values, best, rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------- the table


def row(products: dict[str, Product], given: Operands, repeats: int) -> dict[str, Any]:
    """Check and time one pair of operands."""
    check(products, given)
    runs = {name: lambda p=product: p(given.a, given.w) for name, product in products.items()}
    seconds = medians(runs, repeats)
    print(f"{given.kind}, {given.what} {given.sizes}: done", flush=True)
    return {"kind": given.kind, "what": given.what, "sizes": given.sizes, "seconds": seconds}


def markdown(rows: list[dict[str, Any]], missing: dict[str, str], on: dict[str, Any], repeats: int) -> str:
    """Write the table for people: times as multiples of the matrix product's."""
    names = [n for n in rows[0]["seconds"] if n != "torch.mm, values"]
    lines = [
        f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, Python {on['python']}; float32, medians of "
        f"{repeats} interleaved repeats, as multiples of the matrix product's time.",
        "",
        "| operands | b × i × j × k | torch.mm, ms | " + " | ".join(names) + " |",
        "|---|---|--:|" + "--:|" * len(names),
    ]
    for r in rows:
        base, sizes = r["seconds"]["torch.mm, values"], " × ".join(map(str, r["sizes"]))
        ratios = " | ".join(f"{r['seconds'][n] / base:.2f}×" for n in names)
        lines.append(f"| {r['kind']}: {r['what']} | {sizes} | {base * 1000:.2f} | {ratios} |")
    if missing:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in missing.items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Time the (max, ×) product on the CPU.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400, help="training steps before real operands are taken")
    parser.add_argument("--operands", type=Path, help="file of real operands: read if it exists, else written")
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, with commas (default: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny operands, one repeat")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options, count, shapes, repeats = Options(steps=given.steps), 6, SHAPES, given.repeats
    if given.quick:
        small = Options(components=("rnn",), steps=2, hidden=8, bptt=4, batch=2, vocabulary=50)
        options, count, shapes, repeats = small, 2, QUICK, 1
    wanted = [n for n in CONTESTANTS if n in given.only.split(",") or n == "torch.mm"]
    products, missing = contestants(wanted)
    subjects = [*random_operands(shapes), *kept(given.operands, options, count)]
    rows, on = [row(products, subject, repeats) for subject in subjects], machine()
    content = {"machine": on, "repeats": repeats, "left_out": missing, "rows": rows}
    save(given.out, "product_vs_torch", markdown(rows, missing, on, repeats), content)


if __name__ == "__main__":
    main()
