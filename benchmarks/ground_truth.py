"""Is what a trace says of a layer true? Networks compiled from programs, of which it is known what is used.

Two programs are compiled into one residual stream and the output reads one of them: its attention layers and MLPs are
in the circuit, those of the other are not. The same network is written in other bases too: the stream is rotated, and
every matrix that reads or writes it rotates with it, so that no output changes. A predictor is judged by the area under
the ROC curve of "is in the circuit" over the layers of a network.

    python benchmarks/ground_truth.py [docs/study.md]      prints the tables, or puts them between the page's marks

Compiled weights are no trained ones: few directions, large numbers, no noise. What holds here need not hold there.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import show
from torch import Tensor, nn

from gradtrace.experiments.predictors import BASELINES, TRACES, predictors
from gradtrace.experiments.statistics import estimate, roc_area
from gradtrace.experiments.tasks import IGNORED, Batch, Task

MARKS = ("<!-- truth:begin -->", "<!-- truth:end -->")
BOS = "bos"
LENGTH = 5  # tokens of a sequence
SHARED = ("tokens", "indices", "one")  # directions that both programs read
SOFTNESS = 0.1  # of what attention scores are: a compiled one is 0 or 100, and its softmax has no gradient
EXACTNESS = 10  # of compiled MLPs: how steep their steps are, for 100
KINK = 100.0  # of the softplus that stands for ReLU, whose derivative at exactly 0 rounding would decide
SHARPNESS = 4.0  # of the classes that are read off
ROTATIONS = 5
EXAMPLES = 16


# ---------------------------------------------------------------- programs


@contextmanager
def tracr() -> Iterator[types.SimpleNamespace]:
    """Import the half of tracr that compiles, which needs no jax; `import tracr.compiler` would bring that in."""
    name = "tracr.compiler"
    found = find_spec("tracr")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("this needs tracr: pip install --no-deps tracr-pypi absl-py")
    package = types.ModuleType(name)  # as if its __init__ were empty
    package.__path__ = [str(Path(p) / "compiler") for p in found.submodule_search_locations]
    sys.modules[name] = package
    try:
        parts = ("rasp_to_graph", "basis_inference", "expr_to_craft_graph", "craft_graph_to_model", "nodes", "lib")
        modules = {part: import_module(f"{name}.{part}") for part in parts}
        yield types.SimpleNamespace(
            rasp=import_module("tracr.rasp.rasp"), bases=import_module("tracr.craft.bases"),
            transformers=import_module("tracr.craft.transformers"), **modules,
        )  # fmt: skip
    finally:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]


def _shift(t: Any, by: int) -> Any:
    rasp = t.rasp
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - by).named(f"{by} before")
    return rasp.Aggregate(before, rasp.tokens).named(f"shift {by}")


def _count(t: Any, token: str) -> Any:
    rasp = t.rasp
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == token)).named(
        f"count {token}"
    )


# Programs over the letters a, b, c, by name; each made anew, for compiling writes into it.
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "histogram": lambda t: t.lib.make_hist(),
    "length": lambda t: t.lib.make_length(),
    "reverse": lambda t: t.lib.make_reverse(t.rasp.tokens),
    "share of a": lambda t: t.lib.make_frac_prevs(t.rasp.numerical(t.rasp.tokens == "a").named("is a")),
    "balance": lambda t: t.lib.make_pair_balance(t.rasp.tokens, "b", "c"),
    "shift": lambda t: _shift(t, 1),
    "shift by 2": lambda t: _shift(t, 2),
    "count of b": lambda t: _count(t, "b"),
}
PAIRS = (
    ("histogram", "reverse"),
    ("length", "share of a"),
    ("shift", "balance"),
    ("reverse", "balance"),
    ("count of b", "shift by 2"),
    ("histogram", "share of a"),
    ("length", "shift"),
    ("reverse", "count of b"),
)
VOCABULARY = ("a", "b", "c")
TOKENS = (BOS, *VOCABULARY)


@dataclass(frozen=True)
class Program:
    """A compiled program: its blocks, its output's directions, and what the language says that it gives."""

    name: str
    blocks: tuple[Any, ...]
    output: tuple[Any, ...]
    evaluate: Callable[[list[str]], list[Any]]


def compiled(t: Any, name: str) -> Program:
    """Compile one program."""
    program = PROGRAMS[name](t)
    extracted = t.rasp_to_graph.extract_rasp_graph(program)
    t.basis_inference.infer_bases(extracted.graph, extracted.sink, set(VOCABULARY), LENGTH)
    t.expr_to_craft_graph.add_craft_components_to_rasp_graph(
        extracted.graph, bos_dir=t.bases.BasisDirection(t.rasp.tokens.label, BOS), mlp_exactness=EXACTNESS
    )
    model = t.craft_graph_to_model.craft_graph_to_model(extracted.graph, extracted.sources)
    return Program(name, tuple(model.blocks), tuple(extracted.sink[t.nodes.OUTPUT_BASIS]), program)


# ---------------------------------------------------------------- two of them as one network


class Stream:
    """A residual stream: each direction of two programs is one of its axes, or, rotated, a mixture of all."""

    def __init__(self, programs: Sequence[Program], rotation: int | None) -> None:
        directions = {("tokens", token) for token in TOKENS} | {("indices", i) for i in range(LENGTH)} | {("one", None)}
        for number, program in enumerate(programs):
            for block in program.blocks:
                directions |= {self.axis(number, d) for d in block.residual_space.basis}
        self.axes = {d: i for i, d in enumerate(sorted(directions, key=str))}
        self.turn = torch.eye(len(self.axes))
        if rotation is not None:
            source = torch.Generator().manual_seed(rotation)
            q, r = torch.linalg.qr(torch.randn(self.turn.shape, generator=source, dtype=torch.float64))
            self.turn = (q * r.diagonal().sign()).float()

    @staticmethod
    def axis(number: int, direction: Any) -> tuple[Any, Any]:
        """Name a direction of a program: only the inputs are shared."""
        name = direction.name if direction.name in SHARED else f"{number} {direction.name}"
        return name, direction.value

    def columns(self, number: int, directions: Sequence[Any]) -> Tensor:
        """Give where some directions of a program are: stream × directions."""
        return self.turn[:, [self.axes[self.axis(number, d)] for d in directions]]


def _matrix(linear: Any) -> Tensor:
    return torch.tensor(linear.matrix, dtype=torch.float32)


class Attention(nn.Module):
    """Compiled attention heads, softened."""

    def __init__(self, stream: Stream, number: int, block: Any) -> None:
        super().__init__()
        at = lambda space: stream.columns(number, space.basis)  # noqa: E731
        heads = list(block.as_multi().heads())
        make = lambda tensors: nn.ParameterList(nn.Parameter(x) for x in tensors)  # noqa: E731
        self.query = make(at(h.w_qk.left_space) @ _matrix(h.w_qk) * SOFTNESS for h in heads)
        self.key = make(at(h.w_qk.right_space) for h in heads)
        self.value = make(at(h.w_ov.input_space) @ _matrix(h.w_ov) for h in heads)
        self.out = make(at(h.w_ov.output_space).T for h in heads)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: batch × time × stream."""
        heads = zip(self.query, self.key, self.value, self.out, strict=True)
        parts = [((x @ q) @ (x @ k).mT).softmax(-1) @ (x @ v) @ o for q, k, v, o in heads]
        return torch.stack(parts).sum(0)


class Mlp(nn.Module):
    """A compiled MLP."""

    def __init__(self, stream: Stream, number: int, block: Any) -> None:
        super().__init__()
        self.enter = nn.Parameter(stream.columns(number, block.fst.input_space.basis) @ _matrix(block.fst))
        self.leave = nn.Parameter(_matrix(block.snd) @ stream.columns(number, block.snd.output_space.basis).T)

    def forward(self, x: Tensor) -> Tensor:
        """Map each step by itself: batch × time × stream."""
        return F.softplus(x @ self.enter, beta=KINK) @ self.leave


class Compiled(nn.Module):
    """Two programs side by side in one stream, one of them read; what `predictors` takes for a network.

    Attributes:
        components: names of the layers, `p0_1_mlp` the second layer of the first program.
        circuit: which of them are of the program that is read.
    """

    def __init__(self, t: Any, programs: Sequence[Program], read: int, rotation: int | None = None) -> None:
        super().__init__()
        stream = Stream(programs, rotation)
        one = stream.turn[:, stream.axes["one", None]]
        tokens = torch.stack([stream.turn[:, stream.axes["tokens", token]] + one for token in TOKENS])
        self.embedding = nn.Embedding.from_pretrained(tokens, freeze=False)
        places = [torch.zeros(len(one)), *(stream.turn[:, stream.axes["indices", i]] for i in range(LENGTH))]
        self.register_buffer("places", torch.stack(places))
        layers: list[list[str]] = [[] for _ in range(max(len(p.blocks) for p in programs))]
        for number, program in enumerate(programs):
            for depth, block in enumerate(program.blocks):
                mlp = isinstance(block, t.transformers.MLP)
                name = f"p{number}_{depth}_{'mlp' if mlp else 'attention'}"
                self.add_module(name, (Mlp if mlp else Attention)(stream, number, block))
                layers[depth].append(name)
        self.layers = layers
        self.components = tuple(name for layer in layers for name in layer)
        self.circuit = np.array([name.startswith(f"p{read}_") for name in self.components])
        output = programs[read].output
        columns = stream.columns(read, output)
        values = [d.value for d in output]
        self.classes: list[Any] = values if len(values) > 1 else sorted(
            {v for row in _sequences(200) for v in programs[read].evaluate(row)})  # fmt: skip
        # A one-hot answer is read as scores; a number x as scores of how near it is to each value v: 2xv - v².
        numbers = torch.tensor([float(v) for v in self.classes]) if len(values) == 1 else None
        scale = columns @ (2 * numbers[None] if numbers is not None else torch.eye(len(values)))
        self.output = nn.Linear(len(one), len(self.classes))
        with torch.no_grad():
            self.output.weight.copy_(scale.T * SHARPNESS)
            self.output.bias.copy_(-SHARPNESS * numbers**2 if numbers is not None else torch.zeros(len(values)))

    def forward(self, inputs: Tensor, present: Collection[str] | None = None) -> Tensor:
        """Score classes: batch × time → batch × time × classes."""
        return self.after(self.embedding(inputs), present)

    def after(self, x: Tensor, present: Collection[str] | None = None) -> Tensor:
        """Go on from the embedding: a layer that is not present adds nothing."""
        x = x + self.get_buffer("places")[: x.shape[1]]
        for layer in self.layers:
            results = [self.get_submodule(n)(x) for n in layer if present is None or n in present]
            x = sum(results, start=x)
        return self.output(x)


class Reading(Task):
    """The classes of a program, as a task."""

    def __init__(self) -> None:
        super().__init__("", len(TOKENS), 0, (LENGTH, LENGTH), None, 1.0)

    def training(self, seed: int, step: int, count: int) -> Batch:
        raise NotImplementedError("compiled networks are not trained")

    def held_out(self, *, beyond: bool = False) -> Batch:
        raise NotImplementedError("compiled networks are not trained")


def _sequences(count: int) -> list[list[str]]:
    source = np.random.default_rng(0)
    return [[VOCABULARY[i] for i in source.integers(3, size=LENGTH)] for _ in range(count)]


def batch_of(model: Compiled, program: Program, count: int) -> Batch:
    """Give sequences, BOS first, and the classes of what the program's definition says."""
    rows = _sequences(count)
    inputs = torch.tensor([[TOKENS.index(token) for token in (BOS, *row)] for row in rows])
    answers = [
        [IGNORED, *(model.classes.index(v) if v is not None else IGNORED for v in program.evaluate(row))]
        for row in rows
    ]
    return Batch(inputs, torch.tensor(answers))


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Judged:
    """One network in one basis: how right it is, and each predictor's area."""

    pair: int
    read: str
    rotation: int | None
    score: float
    loss: float
    area: dict[str, float]


def judge(t: Any, pair: int, read: int, rotation: int | None) -> Judged:
    """Build a network and let every predictor say which of its layers are used."""
    programs = [compiled(t, name) for name in PAIRS[pair]]
    model, task = Compiled(t, programs, read, rotation), Reading()
    batch = batch_of(model, programs[read], EXAMPLES)
    found = predictors(model, task, batch, batch)  # type: ignore[arg-type]
    evaluated = task.evaluate(model, batch)
    area = {name: roc_area(np.array(found[name]), model.circuit) for name in (*TRACES, *BASELINES)}
    return Judged(pair, PAIRS[pair][read], rotation, evaluated.score, evaluated.loss, area)


def judge_all(pairs: Sequence[int] = range(len(PAIRS)), rotations: int = ROTATIONS) -> list[Judged]:
    """Judge all networks, in the plain basis and rotated."""
    bases = [None, *range(1, rotations + 1)]
    with tracr() as t:
        return [judge(t, pair, read, rotation) for pair in pairs for read in (0, 1) for rotation in bases]


def tables(found: Sequence[Judged]) -> str:
    """Write the table of areas, and how far leaving one pair out moves them."""
    pairs = sorted({j.pair for j in found})
    rotations = len({j.rotation for j in found}) - 1
    lines = [
        f"{len(pairs)} pairs of programs, each read both ways, {rotations} rotations; mean area under the ROC curve, "
        "0.5 being chance [95 %, bootstrap of pairs]; beside it the least and most of it when one pair is left out.",
        "",
        "| predictor | plain basis | one pair left out | rotated | one pair left out |",
        "|---|---|---|---|---|",
    ]
    for name in (*TRACES, *BASELINES):
        cells = []
        for plain in (True, False):
            means = np.array([
                np.mean([j.area[name] for j in found if j.pair == p and (j.rotation is None) == plain]) for p in pairs
            ])  # fmt: skip
            e = estimate(means)
            without = [np.delete(means, i).mean() for i in range(len(means))]
            cells += [f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]", f"{min(without):.2f} to {max(without):.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or put them into a page."""
    show(__doc__, MARKS, lambda: tables(judge_all()), arguments)


if __name__ == "__main__":
    main()
