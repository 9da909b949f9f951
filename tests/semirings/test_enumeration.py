"""Every semiring of the family against enumeration of all paths over the explicit scalar graph.

Programs, p, k and gradings are hypothesis's; derivatives are autograd's own, call by call; what each semiring should
give for a list of paths is written out here from its equation.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import programs
from test_brute_force import Oracle, Route, record, weight

from gradtrace import AbsSum, Sum, Tape
from gradtrace.semirings import Count, Entropy, Graded, Max, Power, SignedMax, Through, TopK

many = settings(max_examples=220, deadline=None, suppress_health_check=list(HealthCheck))
both = st.booleans().flatmap(lambda exact: st.tuples(st.just(exact), programs(exact=exact)))


def signed(route: Route) -> float:
    out = 1.0
    for edge in reversed(route):
        out *= edge.weight
    return out


class Question:
    """A recorded program, and all paths from each leaf scalar."""

    def __init__(self, program) -> None:
        self.tape, self.loss, self.leaves = record(program)
        oracle = Oracle(self.tape, self.loss)
        self.routes = {
            (name, flat): oracle.routes((self.tape.leaves[name].id, flat))
            for name, leaf in self.leaves.items()
            for flat in range(leaf.numel())
        }

    def ask(self, *semirings, **options) -> list[dict[tuple[str, int], list[float]]]:
        """For each semiring and leaf scalar, what its element consists of, flat."""
        out = self.tape.grad(self.loss, list(self.leaves.values()), semirings, allow_unused=True, **options)
        return [dict(self._scalars(found)) for found in out]

    def _scalars(self, found):
        for (name, leaf), g in zip(self.leaves.items(), found, strict=True):
            rows = None if g is None else g.reshape(-1, leaf.numel())
            for flat in range(leaf.numel()):
                yield (name, flat), None if rows is None else rows[:, flat].tolist()


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


@many
@given(both, st.floats(1, 40) | st.integers(1, 32))
def test_power_is_the_p_norm_of_the_path_weights(drawn, p):
    q = Question(drawn[1])
    power, higher, total, largest, first = q.ask(Power(p), Power(p + 1.5), AbsSum, Max, Power(1))
    for at, routes in q.routes.items():
        sizes = [weight(r) for r in routes]
        top = max(sizes, default=0.0)
        want = top * sum((s / top) ** p for s in sizes) ** (1 / p) if top else 0.0
        assert (power[at] or [0.0]) == [near(want)], at
        if power[at] is not None:
            assert first[at] == [near(total[at][0])]
            assert power[at][0] >= largest[at][0] * (1 - 1e-12)
            assert power[at][0] >= higher[at][0] * (1 - 1e-12) - 1e-300
            assert power[at][0] <= total[at][0] * (1 + 1e-12) + 1e-300


@many
@given(both)
def test_entropy_of_the_distribution_of_paths_in_bits(drawn):
    q = Question(drawn[1])
    entropy, count = q.ask(Entropy, Count)
    for at, routes in q.routes.items():
        sizes = [weight(r) for r in routes]
        shares = [s / sum(sizes) for s in sizes]
        want = -sum(s * math.log2(s) for s in shares)
        found = (entropy[at] or [0.0])[0]
        assert found == pytest.approx(want, rel=1e-9, abs=1e-9), at
        assert (count[at] or [0])[0] == len(routes)
        assert found <= math.log2(max(1, len(routes))) + 1e-9
        assert len(routes) > 1 or abs(found) < 1e-12


@many
@given(both, st.integers(1, 7))
def test_top_k_are_the_k_largest_weights_and_their_paths(drawn, k):
    exact, program = drawn
    q = Question(program)
    top, one, largest = q.ask(TopK(k), TopK(1), Max)
    trace = q.tape.trace(q.loss)
    for at, routes in q.routes.items():
        want = sorted(map(weight, routes), reverse=True)[:k]
        assert (top[at] or [0.0] * k) == [near(w) for w in want + [0.0] * (k - len(want))]
        # one minus a square is rounded once or twice
        assert one[at] == (largest[at] if exact or largest[at] is None else [near(v) for v in largest[at]])
        check_paths(trace, q, at, k, exact=exact)


def check_paths(trace, q: Question, at: tuple[str, int], k: int, *, exact: bool) -> None:
    """The paths found are different routes of the weights wanted; where arithmetic is exact, the very ones."""
    routes, value = q.routes[at], q.tape.leaves[at[0]]
    search = trace._rankings["best"].search([value], k)
    found = [tuple(steps(moves)) for moves in search.routes(value, at[1])]
    chosen = sorted(routes, key=lambda r: (-weight(r), [e.order for e in r]))[:k]
    weights = {tuple(e.order for e in r): weight(r) for r in routes}
    assert len(set(found)) == len(found) == len(chosen)
    assert [weights[f] for f in found] == [near(weight(r)) for r in chosen]
    if exact:
        assert found == [tuple(e.order for e in r) for r in chosen]


def steps(moves) -> list[tuple[int, int, int, int]]:
    return [(call.index, argument, output, there) for call, argument, output, there, _ in moves]


@many
@given(both)
def test_signed_extremes_are_the_largest_and_the_smallest_path_weight(drawn):
    q = Question(drawn[1])
    (found,) = q.ask(SignedMax)
    ranking = q.tape.trace(q.loss)._rankings["extreme"]
    for at, routes in q.routes.items():
        weights = {tuple(e.order for e in r): signed(r) for r in routes}
        ends = [max(weights.values()), min(weights.values())] if routes else [0.0, 0.0]
        assert (found[at] or [0.0, 0.0]) == [near(w) for w in ends], at
        value = q.tape.leaves[at[0]]
        search = ranking.search([value], 1)
        for end, want in enumerate(ends if routes else []):
            (moves,) = search.routes(value, at[1], end)
            assert weights[tuple(steps(moves))] == near(want)


def components(tape: Tape) -> list[str]:
    """Names that a grading can go by: components, and single calls of them."""
    scopes = {s for call in tape.calls for s in call.scopes}
    return sorted({s.name for s in scopes} | {f"{s.name}:{s.instance}" for s in scopes if s.instance > 1})


def crossed(tape: Tape, route: Route, component: str) -> bool:
    name, _, instance = component.partition(":")
    scopes = [s for e in route for s in tape.calls[e.order[0]].scopes]
    return any(s.name == name and (not instance or s.instance == int(instance)) for s in scopes)


SPLIT = {
    "sum": (Sum, lambda routes: sum(map(signed, routes))),
    "abssum": (AbsSum, lambda routes: sum(map(weight, routes))),
    "max": (Max, lambda routes: max(map(weight, routes), default=0.0)),
    "count": (Count, len),
    "power": (Power(3), lambda routes: sum(weight(r) ** 3 for r in routes) ** (1 / 3)),
}


@many
@given(both, st.integers(0, 4) | st.none(), st.sampled_from(sorted(SPLIT)), st.data())
def test_graded_splits_by_how_many_components_a_path_crosses(drawn, degree, name, data):
    q = Question(drawn[1])
    by = data.draw(st.lists(st.sampled_from(components(q.tape)), min_size=1, max_size=4, unique=True))
    semiring, total = SPLIT[name]
    (found,) = q.ask(Graded(degree, by, semiring))
    most = len(by) if degree is None else degree
    for at, routes in q.routes.items():
        lengths = [min(most + 1, sum(crossed(q.tape, r, c) for c in by)) for r in routes]
        parts = [[r for r, n in zip(routes, lengths, strict=True) if n == d] for d in range(most + 2)]
        flow = sum(map(weight, routes))
        want = [pytest.approx(total(part), rel=1e-9, abs=1e-12 * (1 + flow)) for part in parts]
        assert (found[at] or [0.0] * (most + 2)) == want, (at, by)


@many
@given(both, st.data())
def test_through_and_around_each_component(drawn, data):
    q = Question(drawn[1])
    names = data.draw(st.lists(st.sampled_from(components(q.tape)), min_size=1, max_size=4, unique=True))
    (found,) = q.ask(Through(names))
    expected = torch.autograd.grad(q.loss, list(q.leaves.values()), allow_unused=True)
    gradient = {n: g for n, g in zip(q.leaves, expected, strict=True) if g is not None}
    for at, routes in q.routes.items():
        if found[at] is None:
            assert not routes
            continue
        through, around = found[at][: len(names)], found[at][len(names) :]
        flow = 1 + sum(map(weight, routes))
        for name, a, b in zip(names, through, around, strict=True):
            inner = [signed(r) for r in routes if crossed(q.tape, r, name)]
            outer = [signed(r) for r in routes if not crossed(q.tape, r, name)]
            assert a == pytest.approx(sum(inner), rel=1e-9, abs=1e-12 * flow)
            assert b == pytest.approx(sum(outer), rel=1e-9, abs=1e-12 * flow)
            if at[0] in gradient:
                assert abs(a + b - float(gradient[at[0]].flatten()[at[1]])) <= 1e-10 * flow
