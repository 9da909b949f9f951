"""Joins against following every trace, and networks whose answer is known."""

from __future__ import annotations

import math
from collections import Counter

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from checks import F64, leaf, recorded, recorded_by_example
from hypothesis import given, settings
from programs import Program, programs
from torch import Tensor, nn

from gradtrace import Tape, Trace, record
from gradtrace.queries.forest import Forest
from gradtrace.queries.join_counts import count
from gradtrace.queries.joins import Join, JoinTable, joins
from gradtrace.queries.junctions import Junction, junctions
from gradtrace.recording.record import Record, Value


def _graph(record: Record, loss: Value) -> nx.MultiDiGraph:
    """Leaves (by id, negative) and calls (by number), an edge for each argument."""
    graph = nx.MultiDiGraph()
    for call in record.before(loss):
        graph.add_node(call.index)
        for position, i in enumerate(call.inputs):
            if i.value is not None and i.value.differentiable:
                graph.add_edge(_maker(i.value), call.index, key=position)
    return graph


def _maker(value: Value) -> int:
    return value.call.index if value.call is not None else -1 - value.id


def _had_choice(graph: nx.MultiDiGraph, junction: Junction, leaf: Value, first: int) -> bool:
    """The definition: from the first call, or else from the leaf where no call lies in between, to two entries."""
    above = {e.value.id: nx.ancestors(graph, _maker(e.value)) | {_maker(e.value)} for e in junction.entries}
    if sum(first in nodes for nodes in above.values()) > 1:
        return True
    pairs = [(a, b) for n, a in enumerate(above.values()) for b in list(above.values())[:n]]
    return any(all(v < 0 for v in a & b) and _maker(leaf) in a & b for a, b in pairs)


def _walked(forest: Forest, found: list[Junction]) -> tuple[list[Counter[tuple[int, int]]], Counter[int]]:
    """Follow every trace by itself: by junction, how many come in by (example, branch), and how many there are."""
    graph = _graph(forest.record, forest.loss)
    edges = {place: (j, b) for j, it in enumerate(found) for b, e in enumerate(it.entries) for place in e.arguments}
    came: list[Counter[tuple[int, int]]] = [Counter() for _ in found]
    total: Counter[int] = Counter()
    for start in forest.record.leaves.values():
        for row in range(forest.batch(start)):
            for flat in range(start.numel):
                if not forest.traced(start, row, flat):
                    continue
                total[row] += 1
                value, at, first = start, flat, None
                while value is not forest.loss:
                    here = row if forest.batch(value) > 1 else 0
                    call, position, output, at = forest.consumer(value, here, at)
                    first = call.index if first is None else first
                    j, branch = edges.get((call.index, position), (None, None))
                    if j is not None and _had_choice(graph, found[j], start, first):
                        came[j][row, branch] += 1
                    made = call.outputs[output]
                    assert made is not None
                    value = made
    return came, total


def _assert_counts_are_those_of_the_walk(tape: Tape, loss: Tensor, kind: str, *, per_example: bool = False) -> None:
    forest = tape.trace(loss).forest(kind, per_example=per_example)
    found = [j for j in junctions(tape.record, forest.loss) if not j.heads]
    counts = count(forest, found, list(tape.leaves.values()), by_example=per_example)
    came, total = _walked(forest, found)
    assert {row: n for row, n in enumerate(counts.total[:, 0].tolist()) if n} == dict(total)
    for mine, walked in zip(counts.came, came, strict=True):
        by = {(r, b): mine[r, b, 0] for r in range(len(mine)) for b in range(mine.shape[1]) if mine[r, b, 0]}
        assert by == dict(walked)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["best", "greedy"])
def test_counts_equal_following_every_trace(exact, kind):
    @settings(max_examples=60, deadline=None)
    @given(programs(exact))
    def check(program: Program) -> None:
        tape, loss = recorded(program.run, program.leaves())
        if any(v.call is not None and v.numel for v in [tape.value_of(loss)]):
            _assert_counts_are_those_of_the_walk(tape, loss, kind)

    check()


@settings(max_examples=40, deadline=None)
@given(programs(exact=True))
def test_counts_of_each_example_equal_following_its_traces(program):
    found = recorded_by_example(program)
    if found is not None:
        _assert_counts_are_those_of_the_walk(*found, "best", per_example=True)


@settings(max_examples=40, deadline=None)
@given(programs(exact=True))
def test_the_reference_counts_the_same(program):
    tape, loss = recorded(program.run, program.leaves())
    forest = tape.trace(loss).forest()
    found = junctions(tape.record, forest.loss)
    slow = Forest(forest.record, forest.loss, "best", None, forest.edges, forest.winners, forest.log2)
    leaves = list(tape.leaves.values())
    fast, plain = count(forest, found, leaves), count(slow, found, leaves)
    assert fast.total.tolist() == pytest.approx(plain.total.tolist())
    for a, b in zip(fast.came, plain.came, strict=True):
        assert a.ravel().tolist() == pytest.approx(b.ravel().tolist())


@settings(max_examples=60, deadline=None)
@given(programs(exact=False))
def test_every_call_at_which_paths_meet_is_in_one_junction_and_shares_add_up(program):
    tape, loss = recorded(program.run, program.leaves())
    trace = tape.trace(loss)
    found = junctions(tape.record, trace.root)
    places = [place for j in found for e in j.entries for place in e.arguments]
    assert len(set(places)) == len(places)
    for j in found:
        assert len(j.entries) > 1
        graph = _graph(tape.record, trace.root)
        above = [nx.ancestors(graph, _maker(e.value)) | {_maker(e.value)} for e in j.entries]
        assert _maker(j.fork) in set.union(*(a & b for n, a in enumerate(above) for b in above[:n]))
    for join in trace.joins().rows:
        assert sum(b.share for b in join.branches) == pytest.approx(1)
        assert sum(b.paths for b in join.branches) == join.paths
        assert math.isnan(join.branches[0].weighted_share) or sum(b.weighted_share for b in join.branches) == (
            pytest.approx(1)
        )
