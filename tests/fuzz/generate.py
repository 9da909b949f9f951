"""Draw programs: steps that PyTorch runs and differentiates, on tensors of a few scalars."""

from __future__ import annotations

import math
import random
import re
import warnings
from typing import Any

import torch
from fuzz.kinds import CONNECTING, WRITES, templates
from fuzz.oracle import Oracle, Rejected, run_parts
from fuzz.program import NAME, Part, Program, Step, compiled
from torch import Tensor

TEMPLATES = templates()
PLAIN = [n for n, (_, parts) in TEMPLATES.items() if n.split()[0] not in WRITES]
INPLACE = [n for n in TEMPLATES if n.split()[0] in WRITES]
COUNT = 3  # examples
INDICES = (
    "0",
    "1",
    "-1",
    "1:",
    ":1",
    "::2",
    "..., 0",
    "..., 1:",
    ":, 0",
    ":, 1:",
    "1:, :1",
    "0, 1:",
    "None",
    ":2",
    "..., ::2",
)
SHAPES = (
    "(2, 2)",
    "(-1, 2)",
    "(4,)",
    "(3, -1)",
    "(2, -1)",
    "(3, 2, 2)",
    "(3, 2, -1)",
    "(1, -1)",
    "(6,)",
    "(3, 4)",
    "(-1, 1)",
)
UNDEFINED: list[int] = []  # seeds of programs that PyTorch gives no meaning: few, or the oracle is wrong
HOLE = re.compile(r"\{(\w+)\}")
# what asks how memory is laid out; PyTorch's own median and kthvalue are garbage where rows overlap
LAYOUT = re.compile("as_strided|reshape|flatten|contiguous|view|clone|median|kthvalue")
LEAVES = {"w0": (4, 2), "w1": (4,), "w2": (2, 2), "w3": (), "w4": (2,), "w5": (3, 4), "w6": (4, 4), "w7": (2, 2, 2)}


class Undefined(Exception):
    """PyTorch's own numbers are not those of its definition: memory that overlaps itself is written, or never was."""


class Builder:
    """Takes steps one by one, in PyTorch and in the oracle; refuses those that either cannot take."""

    def __init__(self, inputs: Program) -> None:
        self.start, self.steps, self.oracle = inputs, [], Oracle()
        self.apart = inputs.intent == "apart"
        self.space: dict[str, Any] = inputs.start()
        for name, _ in inputs.inputs:
            given = self.space[name]
            self.oracle.give(name, given, leaf=name in inputs.leaves, example=name in inputs.examples)

    def take(self, step: Step, *, apart: bool | None = None) -> bool:
        """Add a step, if it can be; a step that came half way leaves nothing behind."""
        try:
            self._same_layout(step)
            exec(compiled(step.text), self.space)
            if not self._differentiable(step):
                raise Rejected("autograd cannot go back")
            run_parts(self.oracle, step.parts, apart=self.apart if apart is None else apart)
            self._compare(step)
        except (Rejected, RuntimeError, IndexError, ValueError, TypeError, NameError, AttributeError):
            if any("write" in p.mode for p in step.parts):
                self._again()
            for name in {n for p in step.parts for n in p.outs} - self._known():
                self.space.pop(name, None)
                self.oracle.env.pop(name, None)
            return False
        self.steps.append(step)
        return True

    def _same_layout(self, step: Step) -> None:
        """Refuse a step that asks how memory is laid out, of a tensor that the oracle lays out in another way."""
        if LAYOUT.search(step.text):
            for name in NAME.findall(step.text):
                ref, real = self.oracle.env.get(name), self.space.get(name)
                if ref is not None and isinstance(real, Tensor) and ref.where.stride() != real.stride():
                    raise Rejected("laid out in another way")

    def _known(self) -> set[str]:
        return {n for n, _ in self.start.inputs} | {n for s in self.steps for p in s.parts for n in p.outs}

    def _again(self) -> None:
        """Go back to before a write that failed."""
        self.space = self.start.start()
        for step in self.steps:
            exec(compiled(step.text), self.space)

    def _differentiable(self, step: Step) -> bool:
        """See whether autograd still has what it saved, after a write."""
        if not any("write" in p.mode for p in step.parts):
            return True
        alive = {id(t): t for n, t in self.space.items() if NAME.fullmatch(n) and isinstance(t, Tensor)}
        ends = [t for t in alive.values() if t.requires_grad and t.is_floating_point()]
        leaves = [t for t in ends if t.is_leaf]
        if not leaves:
            return True
        total = torch.stack([t.sum() for t in ends]).sum()
        torch.autograd.grad(total, leaves, allow_unused=True)
        return True

    def _compare(self, step: Step) -> None:
        """The oracle's numbers are PyTorch's own: its model of memory holds."""
        for name, ref in self.oracle.env.items():
            real = self.space.get(name)
            if isinstance(real, Tensor) and not torch.equal(ref.value(), real.detach()):
                close = real.is_floating_point() and torch.allclose(ref.value(), real.detach(), rtol=1e-12, atol=1e-12)
                if not close:
                    raise Undefined(f"{name} after {step.text}: {ref.value()} is not {real}")


class Generator:
    """Draws one program from one seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.made = 0
        intent = self.random.choices(("apart", "connect", "free"), (5, 2, 3))[0]
        self.builder = Builder(self._inputs(intent))
        self.newest: list[str] = []

    # ------------------------------------------------------------ leaves and data

    def _inputs(self, intent: str) -> Program:
        leaves = self.random.sample(sorted(LEAVES), 4)
        inputs = [(n, self._literal(LEAVES[n]) + ".requires_grad_()") for n in leaves]
        way = self.random.choice(("plain", "plain", "plain", "expanded", "overlapping", "two", "followed", "deep"))
        if way == "expanded":
            inputs.append(("x0", f"{self._literal((1, 4))}.expand(3, 4)"))
        elif way == "overlapping":
            inputs.append(("x0", f"{self._literal((6,))}.unfold(0, 4, 1)"))
        elif way == "deep":
            inputs.append(("x0", self._literal((COUNT, 2, 2))))
        else:
            inputs.append(("x0", self._literal((COUNT, 4)) + ".requires_grad_()" * (way == "followed")))
        examples = ["x0"]
        if way in ("two", "deep") or self.random.random() < 0.3:
            ids = [[self.random.randrange(2) for _ in range(2)] for _ in range(COUNT)]
            inputs.append(("i0", f"torch.tensor({ids})"))
            examples.append("i0")
        inputs.append(("i1", f"torch.tensor({[self.random.randrange(2) for _ in range(self.random.randint(1, 3))]})"))
        followed = (*leaves, *(["x0"] if way == "followed" else []))
        return Program(tuple(inputs), followed, tuple(examples), (), Step("loss", "", ()), intent)

    def _literal(self, shape: tuple[int, ...]) -> str:
        def nested(sizes: tuple[int, ...]) -> Any:
            if not sizes:
                return round(self.random.choice((-1, 1)) * self.random.uniform(0.2, 1.8), 2)
            return [nested(sizes[1:]) for _ in range(sizes[0])]

        return f"torch.tensor({nested(shape)}, dtype=torch.float64)"

    # ------------------------------------------------------------ steps

    def program(self) -> tuple[Program, Oracle] | None:
        """Draw all of it; None where nothing followed came out, or nothing defined."""
        try:
            return self._program()
        except Undefined:
            UNDEFINED.append(self.seed)
            return None

    def _program(self) -> tuple[Program, Oracle] | None:
        count = self.random.randint(4, 12)
        at = self.random.randrange(2, count) if self.builder.start.intent == "connect" else -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._begin()
            for number in range(count):
                if number == at:
                    self._connect()
                self._draw()
            return self._finish()

    def _begin(self) -> None:
        """Let a parameter meet the data: most programs should be about examples."""
        for kind in self.random.sample(["matmul", "mul", "add", "embedding", "linear", "einsum_rows", "conv1d"], 3):
            for _ in range(4):
                if self._try(kind, TEMPLATES[kind], first="x0"):
                    break

    def _draw(self) -> None:
        """Add one step: about a third write in place."""
        for _ in range(40):
            kind = self.random.choice(INPLACE if self.random.random() < 0.35 else PLAIN)
            if self._try(kind, TEMPLATES[kind]):
                return

    def _connect(self) -> None:
        """Let examples meet, at a value that a parameter reaches and that still knows its rows."""
        env = self.builder.oracle.env
        rows = [n for n, r in env.items() if self._usable(n) and r.followed() and len(set(r.memory.labels)) > 1]
        for _ in range(30):
            kind = self.random.choice(sorted(CONNECTING))
            if rows and self._try(kind, CONNECTING[kind], first=self.random.choice(rows), apart=False):
                self.builder.apart = False
                return

    def _try(self, kind: str, template: tuple, first: str | None = None, apart: bool | None = None) -> bool:
        line, parts = template
        holes: dict[str, str] = {} if first is None else {"a": first}
        for hole in dict.fromkeys(HOLE.findall(line + "".join(o + e for _, o, e in parts))):
            if hole not in holes:
                found = self._fill(hole, holes)
                if found is None:
                    return False
                holes[hole] = found
        made = tuple(
            Part(mode, tuple(o.strip() for o in outs.format(**holes).split(",")), expr.format(**holes))
            for mode, outs, expr in parts
        )
        step = Step(kind.split()[0], line.format(**holes), made)
        if not self.builder.take(step, apart=apart):
            return False
        self.newest += [n for n in made[-1].outs if n not in self.newest]
        return True

    def _fill(self, hole: str, holes: dict[str, str]) -> str | None:
        if hole[0] in "otuvw":
            self.made += 1
            return f"{'h' if hole[0] in 'ov' else 't'}{self.made}"
        if hole in "abckijmpq":
            return self._operand(hole)
        if hole == "d":
            dims = self.builder.oracle.env[holes["a"]].where.dim() if "a" in holes else 1
            low = 1 if self.builder.apart and dims > 1 and self.random.random() < 0.7 else 0
            return str(self.random.randrange(low, max(dims, low + 1)))
        if hole == "n":
            return str(self.random.randrange(2))
        return self.random.choice(INDICES if hole in "xy" else SHAPES)

    def _operand(self, hole: str) -> str | None:
        env = self.builder.oracle.env
        if hole in "ijm":
            kind = torch.bool if hole == "m" else torch.int64
            fitting = [n for n, r in env.items() if r.memory.data.dtype == kind]
        elif hole in "pq":
            fitting = list(self.builder.oracle.leaves)
        else:
            fitting = [n for n in env if self._usable(n)]
            if hole == "k":
                fitting = [n for n in fitting if not env[n].followed()]
            elif self.random.random() < 0.6:
                fitting = [n for n in fitting if n in self.newest] or fitting
                fitting = fitting[-4:]
        return self.random.choice(fitting) if fitting else None

    def _usable(self, name: str) -> bool:
        """A tensor of floats that the program's own text has a name for."""
        return name in self.builder.space and self.builder.oracle.env[name].memory.data.dtype == torch.float64

    # ------------------------------------------------------------ the loss

    def _finish(self) -> tuple[Program, Oracle] | None:
        loss = self._loss()
        if loss is None or not self.builder.take(loss, apart=False):
            return None
        steps, start = tuple(self.builder.steps[:-1]), self.builder.start
        done = Program(start.inputs, start.leaves, start.examples, steps, loss, start.intent)
        return done, self.builder.oracle

    def _loss(self) -> Step | None:
        env = self.builder.oracle.env
        ends = [n for n in self.newest if self._usable(n) and env[n].followed()]
        if not ends:
            return None
        ends = list(dict.fromkeys([ends[-1], *self.random.sample(ends, min(len(ends), self.random.randrange(3)))]))
        shapes = [tuple(env[n].where.shape) for n in ends]
        return loss_step(ends, shapes, self.random.choice(("sum", "mean")), self.random.choice((1.0, 0.5, -3.0)))


def loss_step(ends: list[str], shapes: list[tuple[int, ...]], reduce: str, factor: float) -> Step:
    """Make ℓ: of every end the weighted scalars, summed or averaged, and then the sum of these."""
    parts, terms = [], []
    for n, (end, shape) in enumerate(zip(ends, shapes, strict=True)):
        weights = f"torch.linspace({1 + n}, {2 + n}, {math.prod(shape)}, dtype=torch.float64).reshape({shape})"
        parts += [Part("call", (f"z{n}",), f"{end} * {weights}"), Part("call", (f"s{n}",), f"z{n}.{reduce}()")]
        terms.append(f"({end} * {weights}).{reduce}()")
    parts.append(Part("call", ("y0",), f"s0 * {factor}"))
    for n in range(1, len(ends)):
        parts.append(Part("call", (f"y{n}",), f"y{n - 1} + s{n}"))
    text = " + ".join([f"{terms[0]} * {factor}", *terms[1:]])
    return Step("loss", f"loss = {text}", tuple(parts))


def ends_of(loss: Step) -> list[str]:
    return [p.args[0] for p in loss.parts if p.outs[0].startswith("z")]
