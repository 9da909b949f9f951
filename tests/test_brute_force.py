"""Max, greedy, AbsSum, Count, crossing, influence and flow against enumeration over the scalar graph.

The graph's derivatives are autograd's own, call by call; the enumeration, the choice of the path and all shares
are written out here from the definitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from programs import Program, programs

import gradtrace
from gradtrace import AbsSum, Sum, Tape
from gradtrace.queries.forest import NONE, Forest
from gradtrace.queries.paths import walk
from gradtrace.scalar import from_tape
from gradtrace.semirings.base import Count, Max

MOST_PATHS = 3000
NEAR = 1e-9


@dataclass(frozen=True)
class Edge:
    order: tuple[int, int, int, int]  # call, argument, output, flat index of the consumer
    target: tuple[int, int]
    weight: float


Route = tuple[Edge, ...]


class Oracle:
    """Every path of a small program."""

    def __init__(self, tape: Tape, loss: torch.Tensor) -> None:
        graph = from_tape(tape, loss)
        self.loss = graph.graph["loss"]
        self.out: dict[tuple[int, int], list[Edge]] = {v: [] for v in graph}
        for v, u, data in graph.edges(data=True):
            if data["weight"] != 0:
                self.out[v].append(Edge(data["order"], u, data["weight"]))
        for edges in self.out.values():
            edges.sort(key=lambda e: e.order)

    def routes(self, start: tuple[int, int]) -> list[Route]:
        found: list[Route] = []
        stack: list[tuple[tuple[int, int], Route]] = [(start, ())]
        while stack:
            vertex, route = stack.pop()
            if vertex == self.loss:
                found.append(route)
                assume(len(found) <= MOST_PATHS)
            stack.extend((e.target, (*route, e)) for e in self.out.get(vertex, ()))
        return found

    def gradient(self, lift=lambda w: w) -> dict[tuple[int, int], float]:
        """Ordinary backpropagation; vertices are numbered in recording order, so larger ones come first."""
        g = dict.fromkeys(self.out, 0.0)
        g[self.loss] = 1.0
        for v in sorted(self.out, reverse=True):
            if v != self.loss:
                g[v] = sum(lift(e.weight) * g[e.target] for e in self.out[v])
        return g

    def noisy(self, g: dict[tuple[int, int], float]) -> set[tuple[int, int]]:
        """Vertices whose gradient cancels to rounding noise (or, by luck, to 0)."""
        flow = self.gradient(abs)
        return {v for v in g if abs(g[v]) < 1e-12 * flow[v]}

    def greedy(
        self, start: tuple[int, int], g: dict[tuple[int, int], float], *, exact: bool
    ) -> tuple[Route | None, bool]:
        """Algorithm 1: (route, whether two choices were so close that rounding decides)."""
        route: list[Edge] = []
        close, vertex = False, start
        noisy = set() if exact else self.noisy(g)
        while vertex != self.loss:
            pulls = [abs(e.weight * g[e.target]) for e in self.out.get(vertex, ())]
            close |= any(e.target in noisy for e in self.out.get(vertex, ()))
            if not pulls or max(pulls) == 0:
                return None, close
            best = pulls.index(max(pulls))
            near = [p for p in pulls if p > pulls[best] * (1 - NEAR)]
            close |= len(near) > (near.count(pulls[best]) if exact else 1)
            route.append(self.out[vertex][best])
            vertex = route[-1].target
        return tuple(route), close


def weight(route: Route) -> float:
    """Multiply from the loss towards the leaf, as the definition does."""
    out = 1.0
    for edge in reversed(route):
        out *= abs(edge.weight)
    return out


def best(routes: list[Route], *, exact: bool) -> tuple[Route, bool]:
    """Choose the heaviest, of equals the one whose edges come first: (route, whether rounding decides)."""
    top = max(map(weight, routes))
    near = [r for r in routes if weight(r) > top * (1 - NEAR)]
    equal = [r for r in routes if weight(r) == top]
    # p (1 - p) and p q are one number if p + q = 1, but only where arithmetic is exact
    return min(equal, key=lambda r: [e.order for e in r]), len(near) > (len(equal) if exact else 1)


def steps(forest: Forest, name: str, flat: int) -> list[tuple[int, int, int, int]]:
    found = walk(forest, forest.record.leaves[name], flat, None)
    return [(call.index, argument, output, there) for call, argument, output, there, _ in found]


def record(program: Program) -> tuple[Tape, torch.Tensor, dict[str, torch.Tensor]]:
    leaves = program.leaves()
    with gradtrace.record(names=leaves) as tape:
        loss = program.run(leaves)
    assume(bool(loss.isfinite()) and loss.requires_grad)
    return tape, loss, leaves


def check_sums(tape: Tape, loss: torch.Tensor, leaves: dict[str, torch.Tensor], oracle: Oracle) -> None:
    expected = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    ours = tape.grad(loss, list(leaves.values()), Sum, allow_unused=True)
    for a, b in zip(ours, expected, strict=True):
        if b is not None:
            assert torch.allclose(torch.zeros_like(b) if a is None else a, b, rtol=1e-9, atol=1e-9)
    for semiring, total in ((AbsSum, weight), (Count, lambda r: 1.0), (Max, None)):
        found = tape.grad(loss, list(leaves.values()), semiring, allow_unused=True)
        for name, g in zip(leaves, found, strict=True):
            for flat in range(leaves[name].numel()):
                routes = oracle.routes((tape.leaves[name].id, flat))
                want = max(map(weight, routes), default=0.0) if total is None else sum(map(total, routes))
                have = 0.0 if g is None else float(g.flatten()[flat])
                assert have == pytest.approx(want, rel=1e-9, abs=1e-12), (semiring.name, name, flat)


def check_traces(tape: Tape, loss: torch.Tensor, oracle: Oracle, kind: str, *, exact: bool) -> None:
    """Strength, paths, crossing, influence and flow of one kind of trace."""
    trace = tape.trace(loss)
    forest = trace.forest(kind)
    g = oracle.gradient()
    chosen: dict[tuple[str, int], Route] = {}
    unclear, pairs = False, 0
    for name, value in tape.leaves.items():
        for flat in range(value.numel):
            pairs += 1
            routes = oracle.routes((value.id, flat))
            if kind == "best":
                route, close = best(routes, exact=exact) if routes else (None, False)
                strength = float(trace.strength[name].flatten()[flat])
                assert strength == pytest.approx(math.log2(weight(route)) if route else -math.inf, abs=1e-9)
            else:
                route, close = oracle.greedy((value.id, flat), g, exact=exact)
                # a gradient that cancels is noise, or 0 where it was added up in another order
                close |= not exact and abs(g.get((value.id, flat), 0.0)) < 1e-12
            unclear |= close
            if close:
                continue
            assert steps(forest, name, flat) == [e.order for e in route or ()], (name, flat)
            if route is not None:
                chosen[name, flat] = route
                index = tuple(torch.unravel_index(torch.tensor(flat), value.shape)) if value.shape else ()
                path = trace.path(name, tuple(int(i) for i in index), kind=kind)
                assert path.log2_weight == pytest.approx(math.log2(weight(route)), abs=1e-9)
    if not unclear and chosen:
        check_shares(tape, trace, chosen, g, kind, pairs)


def check_shares(tape, trace, chosen: dict[tuple[str, int], Route], g, kind: str, pairs: int) -> None:
    """Influence and flow from the definitions, given everybody's path."""
    names = sorted({s.name for call in tape.calls for s in call.scopes})
    mass = {k: weight(r) if kind == "best" else abs(g[tape.leaves[k[0]].id, k[1]]) for k, r in chosen.items()}
    table = trace.influence(names, kind=kind, per_example=False)
    for row in table.rows:
        crossing = {k for k, r in chosen.items() if any(inside(tape, e, row.component) for e in r)}
        assert row.share == pytest.approx(len(crossing) / len(chosen))
        assert row.dead_share == pytest.approx(1 - len(chosen) / pairs)
        if sum(mass.values()) > 1e-9:
            want = sum(mass[k] for k in crossing) / sum(mass.values())
            assert row.weighted_share == pytest.approx(want, rel=1e-6, abs=1e-9)
    flow = {row.call: row.paths for row in trace.flow(kind=kind).calls}
    for call in tape.calls:
        through = sum(1 for r in chosen.values() for e in r if e.order[0] == call.index)
        assert flow.get(call.index, 0) == pytest.approx(through)


def inside(tape: Tape, edge: Edge, component: str) -> bool:
    return any(scope.name == component for scope in tape.calls[edge.order[0]].scopes)


many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(programs(exact=True))
def test_exact_programs(program):
    """Small dyadic numbers: ties are real and must fall as defined."""
    tape, loss, leaves = record(program)
    oracle = Oracle(tape, loss)
    check_sums(tape, loss, leaves, oracle)
    for kind in ("best", "greedy"):
        check_traces(tape, loss, oracle, kind, exact=True)


@many
@given(programs(exact=False))
def test_smooth_programs(program):
    """Softmax, layer norm and the like, on arbitrary numbers."""
    tape, loss, leaves = record(program)
    oracle = Oracle(tape, loss)
    check_sums(tape, loss, leaves, oracle)
    for kind in ("best", "greedy"):
        check_traces(tape, loss, oracle, kind, exact=False)


def test_no_path_is_none():
    x = torch.ones(2, requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        loss = x[0] * 2
    forest = tape.trace(loss).forest()
    assert (forest.winners[tape.leaves["x"].id] == NONE).tolist() == [[False, True]]
