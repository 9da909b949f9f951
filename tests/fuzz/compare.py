"""Ask gradtrace what the oracle has answered: every difference is an `AssertionError` that says which question."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from generate import COUNT, ends_of
from oracle import Oracle, greedy
from program import Program
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradtrace
from gradtrace import AbsSum, Count, Max, Sum, Tape, Trace

NEAR = 1e-9


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
    root = oracle.read(oracle.env[last(program)])[0]
    if root is None or not any(v in oracle.graph.absolute(root) for v in _all_leaves(oracle)):
        return  # no path at all
    oracle.leaves = {n: v for n, v in oracle.leaves.items() if n in program.leaves or used(program, n)}
    plain, batch = run(program, examples=False), run(program, examples=True)
    honest(plain, oracle, root)
    trace = plain.tape.trace(plain.loss, check=True)
    sums(plain, oracle, root)
    strengths(trace, plain, oracle, root)
    routes(trace, plain, oracle, root)
    if not oracle.writes:
        between(plain, oracle, root)
        if operators(program) == oracle.calls:
            greedy_routes(trace, plain, oracle, root)
    unchanged(trace, plain, batch, oracle)
    per_example(program, batch, oracle, root)


class Operators(TorchDispatchMode):
    """Counts the operator calls that autograd follows."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if torch.is_grad_enabled() and func is not torch.ops.aten.detach.default:
            self.count += any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(args))
        return func(*args, **(kwargs or {}))


def operators(program: Program) -> int:
    """Count a program's operator calls: a greedy path depends on every one of them, be it a view inside another."""
    with Operators() as mode:
        program.run(program.start())
    return mode.count


def honest(asked: Asked, oracle: Oracle, root: int) -> None:
    """The oracle's sums are autograd's: this is about the oracle, not about gradtrace."""
    tensors = [asked.space[n] for n in oracle.leaves]
    found = torch.autograd.grad(asked.loss, tensors, retain_graph=True, allow_unused=True)
    g, flow = oracle.graph.sums(root), oracle.graph.absolute(root)
    for (name, vertices), grad in zip(oracle.leaves.items(), found, strict=True):
        have = torch.zeros(len(vertices), dtype=torch.float64) if grad is None else grad
        scale = [flow.get(v, 0.0) for v in vertices]
        near(have, [g.get(v, 0.0) for v in vertices], scale, f"autograd's gradient of {name}")


def used(program: Program, name: str) -> bool:
    """Tell whether a leaf that the program makes is used afterwards: if not, the tape has not seen it."""
    return any(name in part.args for step in (*program.steps, program.loss) for part in step.parts)


def last(program: Program) -> str:
    return program.loss.parts[-1].outs[0]


def _all_leaves(oracle: Oracle) -> Iterator[int]:
    for vertices in oracle.leaves.values():
        yield from vertices


def near(have: Tensor, want: list[float], scale: list[float], what: str) -> None:
    """Compare numbers whose rounding is that of `scale`."""
    wanted, scales = torch.tensor(want, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    have = have.detach().flatten()
    off = (have - wanted).abs() > NEAR * scales.clamp(min=1e-6)
    assert not off.any(), f"{what} is {have.tolist()} and should be {want}"


def sums(asked: Asked, oracle: Oracle, root: int) -> None:
    """Gradient, total absolute weight, strongest weight, number of paths."""
    graph, flow = oracle.graph, oracle.graph.absolute(root)
    names = list(oracle.leaves)
    found = asked.tape.grad(asked.loss, [asked.space[n] for n in names], [Sum, AbsSum, Max, Count], allow_unused=True)
    want = [graph.sums(root), flow, graph.best(root), graph.counts(root)]
    for kind, got, right in zip(("gradient", "AbsSum", "Max", "Count"), found, want, strict=True):
        if kind == "Count" and graph.faint:
            continue
        for name, g in zip(names, got, strict=True):
            vertices = oracle.leaves[name]
            scale = [(right if kind == "Count" else flow).get(v, 0.0) for v in vertices]
            have = torch.zeros(len(vertices), dtype=torch.float64) if g is None else g
            near(have, [right.get(v, 0.0) for v in vertices], scale, f"{kind} of {name}")


def strengths(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    best, flow = oracle.graph.best(root), oracle.graph.absolute(root)
    for name, vertices in oracle.leaves.items():
        have = trace.strength[asked.space[name]].exp2()
        near(have, [best.get(v, 0.0) for v in vertices], [flow.get(v, 0.0) for v in vertices], f"strength of {name}")


def routes(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    """A path's own product of derivatives is the best weight."""
    best, top = oracle.graph.best(root), max(oracle.graph.absolute(root).values())
    for name, k, vertex in _some(oracle):
        want = best.get(vertex, 0.0)
        if want > 1e-9 * top:
            have = trace.path(asked.space[name], _index(asked, name, k)).log2_weight
            assert abs(have - math.log2(want)) < NEAR, f"path of {name}[{k}] weighs 2^{have}, not 2^{math.log2(want)}"


def greedy_routes(trace: Trace, asked: Asked, oracle: Oracle, root: int) -> None:
    g, flow, consumers = oracle.graph.sums(root), oracle.graph.absolute(root), oracle.graph.consumers(root)
    for name, k, vertex in _some(oracle):
        want = greedy(consumers, vertex, root, g, flow)
        if want:
            have = trace.path(asked.space[name], _index(asked, name, k), kind="greedy").log2_weight
            assert abs(have - math.log2(want)) < NEAR, f"greedy of {name}[{k}]: 2^{have}, not 2^{math.log2(want)}"


def _some(oracle: Oracle) -> list[tuple[str, int, int]]:
    """Choose scalars of leaves."""
    there = [(n, k, v) for n, vertices in oracle.leaves.items() for k, v in enumerate(vertices)]
    return random.Random(len(oracle.graph.into)).sample(there, min(3, len(there)))


def _index(asked: Asked, name: str, k: int) -> tuple[int, ...]:
    shape = asked.space[name].shape
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(k), shape)) if shape else ()


def between(asked: Asked, oracle: Oracle, root: int) -> None:
    """Tensors between leaves and loss have gradients of their own; views of one tensor among them."""
    names = [n for n, ref in oracle.env.items() if isinstance(asked.space.get(n), Tensor) and ref.followed()]
    names = [n for n in names if asked.space[n].requires_grad and not asked.space[n].is_leaf]
    if not names:
        return
    found = asked.tape.grad(asked.loss, [asked.space[n] for n in names], [Sum, Max], allow_unused=True)
    flow, want = oracle.graph.absolute(root), (oracle.graph.sums(root), oracle.graph.best(root))
    for kind, got, right in zip(("gradient", "Max"), found, want, strict=True):
        for name, g in zip(names, got, strict=True):
            vertices = [-1 if v is None else v for v in oracle.read(oracle.env[name])]
            have = torch.zeros(len(vertices), dtype=torch.float64) if g is None else g
            scale = [flow.get(v, 0.0) for v in vertices]
            near(have, [right.get(v, 0.0) for v in vertices], scale, f"{kind} of {name}, in between")


def unchanged(trace: Trace, plain: Asked, batch: Asked, oracle: Oracle) -> None:
    """What is said about the whole batch is the same, bit for bit, with examples as without."""
    again = batch.tape.trace(batch.loss, check=True)
    for name in oracle.leaves:
        one, two = trace.strength[plain.space[name]], again.strength[batch.space[name]]
        assert torch.equal(one, two), f"with examples the strength of {name} is {two.tolist()}, not {one.tolist()}"
    kinds = [Sum, AbsSum, Max, Count]
    found = [a.tape.grad(a.loss, [a.space[n] for n in oracle.leaves], kinds, allow_unused=True) for a in (plain, batch)]
    for kind, ones, twos in zip(kinds, *found, strict=True):
        for name, one, two in zip(oracle.leaves, ones, twos, strict=True):
            same = one is two if one is None or two is None else torch.equal(one, two)
            assert same, f"with examples {kind.name} of {name} is {two}, not {one}"


def per_example(program: Program, batch: Asked, oracle: Oracle, root: int) -> None:
    """An example's answer is that of its terms alone; where examples meet, the calls are named."""
    others = oracle.apart([p.outs[0] for p in program.loss.parts if p.outs[0].startswith("z")], COUNT)
    meets = [s.parts[-1].outs[0] for s in program.steps if s.kind.endswith("_batch")]
    meets = [n for n in meets if oracle.met.get(n) and reaches(oracle, n, root)]
    if others is None and not meets:
        batch.tape.trace(batch.loss)
        return
    if meets:
        connected = batch.tape.trace(batch.loss).influence(of="*").connected
        assert connected, f"examples are connected at {meets}, and no call is named"
        return
    assert others is not None
    log2 = batch.tape.trace(batch.loss).forest("best", per_example=True).log2
    flow = oracle.graph.absolute(root)
    for b, gone in enumerate(others):
        best = oracle.graph.best(root, gone)
        for name, vertices in oracle.leaves.items():
            have = _of_example(log2.get(batch.tape.find(batch.space[name]).id), b, oracle.env[name].labels())
            scale = [flow.get(v, 0.0) for v in vertices]
            near(have, [best.get(v, 0.0) for v in vertices], scale, f"example {b} of {name}, best")


def _of_example(log2: Tensor | None, b: int, labels: Tensor) -> Tensor:
    """Give one example's weights for a leaf; a leaf of which every row is an example's own has them side by side."""
    if log2 is None:
        return torch.zeros(labels.numel(), dtype=torch.float64)
    return log2[b].exp2() if len(log2) > 1 else log2[0].exp2().reshape(labels.shape) * (labels == b)


def reaches(oracle: Oracle, name: str, root: int) -> bool:
    """Tell whether paths from leaves to the loss go through a tensor."""
    flow = oracle.graph.absolute(root)
    through = {v for v in oracle.read(oracle.env[name]) if v is not None and flow.get(v)}
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


__all__ = ["compare", "ends_of"]
