"""Ask gradtrace what the oracle has answered: every difference is an `AssertionError` that says which question."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fuzz.generate import COUNT
from fuzz.honest import near, root_of, sums_are_autograds
from fuzz.oracle import Oracle, Vertex, greedy
from fuzz.program import Program, compiled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradtrace
from gradtrace import AbsSum, Count, Max, Path, Sum, Tape, Trace

NEAR = 1e-9
SEMIRINGS = Sum, AbsSum, Max, Count


@dataclass
class Asked:
    """A program after its run: the tape, the loss, and the tensors of its namespace."""

    tape: Tape
    loss: Tensor
    space: dict[str, Any]


def run(program: Program, *, examples: bool) -> Asked:
    space = program.start()
    given = [space[n] for n in program.examples] if examples else None
    with gradtrace.record(names={n: space[n] for n in program.leaves}, examples=given) as tape:
        program.run(space)
    return Asked(tape, space["loss"], space)


def compare(program: Program, oracle: Oracle) -> None:
    """Compare all answers.

    Raises:
        AssertionError: one differs.
        GradtraceError: one was refused.
    """
    root = root_of(program, oracle)
    if root is None or not any(v in oracle.graph.absolute(root) for v in _all_leaves(oracle)):
        return  # no path at all
    flow = oracle.graph.absolute(root)  # a leaf that the program makes and uses nowhere is not on the tape
    oracle.leaves = {n: v for n, v in oracle.leaves.items() if n in program.leaves or not flow.keys().isdisjoint(v)}
    plain, batch = run(program, examples=False), run(program, examples=True)
    sums_are_autograds(program, oracle, root)
    names = [*oracle.leaves, *between(plain, oracle, root)]
    found = gradients(plain, names)
    sums(found, names, oracle, root)
    odd = bool(len(oracle.graph.into) % 2)  # the certificate costs a pass: with examples for one half of the programs
    trace, again = plain.tape.trace(plain.loss, check=odd), batch.tape.trace(batch.loss, check=not odd)
    strengths(trace, plain, oracle, root)
    routes(trace, plain, oracle, root)
    if not oracle.writes and units(program, oracle):
        greedy_routes(trace, plain, oracle, root)
    unchanged(found, gradients(batch, names), names)
    for name in oracle.leaves:
        one, two = trace.strength[plain.space[name]], again.strength[batch.space[name]]
        assert torch.equal(one, two), f"with examples the strength of {name} is {two.tolist()}, not {one.tolist()}"
    per_example(program, batch, again, oracle, root)


class Operators(TorchDispatchMode):
    """Counts the operator calls that autograd follows."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if torch.is_grad_enabled() and func is not torch.ops.aten.detach.default:
            self.count += any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(args))
        return func(*args, **(kwargs or {}))


def units(program: Program, oracle: Oracle) -> bool:
    """Tell whether every part is one operator call: a greedy path depends on each, be it a view inside another."""
    space = program.start()
    for step in (*program.steps, program.loss):
        with Operators() as mode:
            exec(compiled(step.text), space)
        if mode.count != sum(part.outs[0] in oracle.calls for part in step.parts):
            return False
    return True


def _all_leaves(oracle: Oracle) -> Iterator[int]:
    for vertices in oracle.leaves.values():
        yield from vertices


def gradients(asked: Asked, names: list[str]) -> Any:
    """Ask for everything that a walk can say of some tensors: for every semiring one answer a tensor."""
    return asked.tape.grad(asked.loss, [asked.space[n] for n in names], list(SEMIRINGS), allow_unused=True)


def sums(found: Any, names: list[str], oracle: Oracle, root: int) -> None:
    """Gradient, total absolute weight, strongest weight, number of paths; of leaves and of what lies between."""
    graph, flow = oracle.graph, oracle.graph.absolute(root)
    right = [graph.sums(root), flow, graph.best(root), graph.counts(root)]
    for kind, got, g in zip(SEMIRINGS, found, right, strict=True):
        if kind is Count and graph.faint:
            continue
        for name, have in zip(names, got, strict=True):
            vertices = [-1 if v is None else v for v in oracle.leaves.get(name) or oracle.read(oracle.env[name])]
            near(have, vertices, g, g if kind is Count else flow, f"{kind.name} of {name}")


def between(asked: Asked, oracle: Oracle, root: int) -> list[str]:
    """Name tensors between leaves and loss, which have gradients of their own; views of one tensor among them.

    Where there are writes, it is not said whose a gradient is: the tensor's before, or after.
    """
    if oracle.writes:
        return []
    flow = oracle.graph.absolute(root)  # a custom function whose result nobody uses is not on the tape
    followed = [n for n, r in oracle.env.items() if isinstance(asked.space.get(n), Tensor) and r.followed()]
    followed = [n for n in followed if not flow.keys().isdisjoint(oracle.read(oracle.env[n]))]
    return [n for n in followed if asked.space[n].requires_grad and not asked.space[n].is_leaf]


def strengths(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    best, flow = oracle.graph.best(root), oracle.graph.absolute(root)
    for name, vertices in oracle.leaves.items():
        have = trace.strength[asked.space[name]].exp2()
        near(have, vertices, best, flow, f"strength of {name}")


def routes(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    """A path's own product of derivatives is the best weight."""
    best, top = oracle.graph.best(root), max(oracle.graph.absolute(root).values())
    for name, k, vertex in _some(oracle):
        want = best.get(vertex, 0.0)
        if want > 1e-9 * top:
            path = trace.path(asked.space[name], _index(asked, name, k))
            assert abs(path.log2_weight - math.log2(want)) < _rounding(path), (
                f"path of {name}[{k}] weighs 2^{path.log2_weight}, not 2^{math.log2(want)}"
            )


def greedy_routes(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    g, flow, consumers = oracle.graph.sums(root), oracle.graph.absolute(root), oracle.graph.consumers(root)
    for name, k, vertex in _some(oracle):
        want = greedy(consumers, vertex, root, g, flow)
        if want:
            path = trace.path(asked.space[name], _index(asked, name, k), kind="greedy")
            assert abs(path.log2_weight - math.log2(want)) < _rounding(path), (
                f"greedy of {name}[{k}]: 2^{path.log2_weight}, not 2^{math.log2(want)}"
            )


def _rounding(path: Path) -> float:
    """Say how far log2 may be off: a small derivative may be a difference of numbers near 1 (1 - tanh²)."""
    return NEAR + sum(16 * math.ulp(1.0) / abs(step.derivative) for step in path.steps)


def _some(oracle: Oracle) -> list[tuple[str, int, int]]:
    """Choose scalars of leaves."""
    there = [(n, k, v) for n, vertices in oracle.leaves.items() for k, v in enumerate(vertices)]
    return random.Random(len(oracle.graph.into)).sample(there, min(3, len(there)))


def _index(asked: Asked, name: str, k: int) -> tuple[int, ...]:
    shape = asked.space[name].shape
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(k), shape)) if shape else ()


def unchanged(plain: Any, batch: Any, names: list[str]) -> None:
    """What is said about the whole batch is the same, bit for bit, with examples as without."""
    for kind, ones, twos in zip(SEMIRINGS, plain, batch, strict=True):
        for name, one, two in zip(names, ones, twos, strict=True):
            same = one is two if one is None or two is None else torch.equal(one, two)
            assert same, f"with examples {kind.name} of {name} is {two}, not {one}"


def per_example(program: Program, batch: Asked, trace: Trace, oracle: Oracle, root: int) -> None:
    """An example's answer is that of its terms alone; where examples meet, the calls are named."""
    others = oracle.apart([p.outs[0] for p in program.loss.parts if p.outs[0].startswith("z")], COUNT)
    meets = [s.parts[-1].outs[0] for s in program.steps if s.kind.endswith("_batch")]
    meets = [n for n in meets if reaches(oracle, oracle.met.get(n, []), root)]
    if meets:
        assert trace.influence(of="*").connected, f"examples are connected at {meets}, and no call is named"
    if meets or others is None or oracle.unclear:
        return
    log2 = trace.forest("best", per_example=True).log2
    flow = oracle.graph.absolute(root)
    for b, gone in enumerate(others):
        best = oracle.graph.best(root, gone)
        for name, vertices in oracle.leaves.items():
            labels = oracle.env[name].labels()
            # a number of a row of which nothing depends on the row's example is where its loss is
            meant = torch.tensor([bool(best.get(v)) for v in vertices]).reshape(labels.shape)
            own = (labels == b) | ((labels < 0) & meant)
            have = _of_example(log2.get(batch.tape.find(batch.space[name]).id), b, own)
            near(have, vertices, best, flow, f"example {b} of {name}, best")


def _of_example(log2: Tensor | None, b: int, own: Tensor) -> Tensor:
    """Give one example's weights for a leaf; a leaf of which every row is an example's own has them side by side."""
    if log2 is None:
        return torch.zeros(own.numel(), dtype=torch.float64)
    return log2[b].exp2() if len(log2) > 1 else log2[0].exp2().reshape(own.shape) * own


def reaches(oracle: Oracle, vertices: list[Vertex], root: int) -> bool:
    """Tell whether paths from leaves to the loss go through some vertices."""
    flow = oracle.graph.absolute(root)
    through = {v for v in vertices if v is not None and flow.get(v)}
    leaves = set(_all_leaves(oracle))
    return bool(through) and any(_back(oracle, v, leaves) for v in through)


def _back(oracle: Oracle, vertex: int, leaves: set[int]) -> bool:
    waiting, seen = [vertex], {vertex}
    while waiting:
        v = waiting.pop()
        if v in leaves:
            return True
        fresh = {u for u, _ in oracle.graph.into[v]} - seen
        seen |= fresh
        waiting += fresh
    return False
