"""Leaves that are moved, cut and repeated before anything is computed of them, against the reference kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from gradtrace import Trace, record
from gradtrace.kernels import native

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "the first rows": lambda t: t[: max(1, len(t) - 1)],
    "the last rows": lambda t: t[len(t) // 2 :],
    "every other": lambda t: t[::2],
    "the first of some chunks": lambda t: t.chunk(2)[0],
    "flat": lambda t: t.reshape(-1),
    "turned": lambda t: t.transpose(0, -1),
    "with an axis": lambda t: t.unsqueeze(0),
    "repeated": lambda t: t.expand(2, *t.shape),
    "backwards": lambda t: t.flip(0),
    "among zeros": lambda t: pad(t, (1, 1)),
    "a copy": lambda t: t.clone(),
    "beside itself": lambda t: torch.cat([t, t], -1),
}


def traced(seed: int, moves: list[str], examples: bool) -> Trace:
    torch.manual_seed(seed)
    leaf, x = torch.randn(6, 4, requires_grad=True), torch.randn(3, 5)
    with record(names={"leaf": leaf}, examples=x if examples else None) as tape:
        seen = leaf
        for move in moves:
            seen = MOVES[move](seen)
        # each example takes some of it, by weights of its own
        loss = (x.sum(1).reshape(3, *[1] * seen.dim()) * seen).tanh().flatten(1).square().sum(1).mean()
    return tape.trace(loss)


@pytest.mark.parametrize("kind", ["best", "greedy"])
@given(st.integers(0, 1000), st.lists(st.sampled_from(list(MOVES)), min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_leaves_a_moved_leaf_is_what_the_reference_says(kind, seed, moves, examples):
    trace = traced(seed, moves, examples)
    with native.using("reference"):
        said = traced(seed, moves, examples)
        flow, table = said.flow(kind=kind, per_example=examples), said.influence(kind=kind, per_example=examples)
    found = trace.influence(kind=kind, per_example=examples)
    assert [row.share for row in found.rows] == [row.share for row in table.rows]
    assert [int(c.live) for c in found.counts_by_example] == [int(c.live) for c in table.counts_by_example]
    here = trace.flow(kind=kind, per_example=examples)
    assert [(e.source, e.target, e.paths) for e in here.edges] == [(e.source, e.target, e.paths) for e in flow.edges]


@pytest.mark.parametrize("examples", [False, True])
def test_leaves_so_large_that_threads_share_them(examples):
    def asked() -> tuple[Trace, list[tuple[int | str, int, float]]]:
        torch.manual_seed(0)
        net, x = (
            torch.nn.Sequential(torch.nn.Linear(200, 120), torch.nn.ReLU(), torch.nn.Linear(120, 3)),
            torch.randn(4, 200),
        )
        with record(net, examples=x if examples else None) as tape:
            loss = net(x).tanh().square().mean()
        trace = tape.trace(loss)
        flow = trace.flow(per_example=examples)
        return trace, [(e.source, e.target, e.paths) for e in flow.edges]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        trace, found = asked()
    finally:
        torch.set_num_threads(before)
    with native.using("reference"):
        said, wanted = asked()
        heavy = said.flow(weighted=True, per_example=examples)
    assert found == wanted
    here = trace.flow(weighted=True, per_example=examples)
    assert [e.paths for e in here.edges] == pytest.approx([e.paths for e in heavy.edges], rel=1e-5)
