"""Joins against following every trace, and networks whose answer is known."""

from __future__ import annotations

import math
from collections import Counter

import networkx as nx
import pytest
import torch
from checks import F64, recorded, recorded_by_example
from checks import leaf as drawn
from hypothesis import given, settings
from joined import Attention, Stack, traced
from programs import Program, programs
from torch import Tensor, nn

import gradtrace
from gradtrace import Tape, Trace
from gradtrace.queries import join_parts
from gradtrace.queries.forest import Forest
from gradtrace.queries.join_counts import count
from gradtrace.queries.join_text import labels_of
from gradtrace.queries.joins import Join, joins_of
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
    heads = {it.call.index: j for j, it in enumerate(found) if it.heads}
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
                    if (j := heads.get(call.index)) is not None and found[j].asks(start.id, first):
                        came[j][row, at // (value.numel // value.shape[0]) % found[j].heads] += 1
    return came, total


def _recorded(program: Program) -> tuple[Tape, Tensor]:
    leaves = program.leaves()
    with gradtrace.record(names=leaves) as tape:
        loss = program.run(leaves)
    return tape, loss


def _assert_counts_are_those_of_the_walk(tape: Tape, loss: Tensor, kind: str, *, per_example: bool = False) -> None:
    forest = tape.trace(loss).forest(kind, per_example=per_example)
    found = junctions(tape.record, forest.loss)
    (counts,) = count(forest, found, [list(tape.leaves.values())], by_example=per_example)
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
        tape, loss = _recorded(program)
        _assert_counts_are_those_of_the_walk(tape, loss, kind)

    check()


@settings(max_examples=40, deadline=None)
@given(programs(exact=True))
def test_counts_of_each_example_equal_following_its_traces(program):
    found = recorded_by_example(program)
    if found is not None:
        _assert_counts_are_those_of_the_walk(*found, "best", per_example=True)


@pytest.mark.parametrize("kind", ["best", "greedy"])
def test_sets_of_leaves_in_one_pass_count_as_each_alone(kind):
    @settings(max_examples=40, deadline=None)
    @given(programs(exact=True))
    def check(program: Program) -> None:
        tape, loss = _recorded(program)
        forest = tape.trace(loss).forest(kind)
        leaves = list(tape.leaves.values())
        sets = [leaves, leaves[:1], leaves[1:], leaves[:2], []]
        found = junctions(tape.record, forest.loss)
        for together, own in zip(count(forest, found, sets), sets, strict=True):
            (alone,) = count(forest, found, [own])
            for a, b in zip((*together.came, together.total), (*alone.came, alone.total), strict=True):
                assert a.ravel().tolist() == pytest.approx(b.ravel().tolist())

    check()


def test_weights_of_a_set_are_compared_among_themselves_however_weak_they_are():
    """2^-1200 beside 1: in a float of the stronger one's unit the weaker branches would be 0."""
    tiny, strong = torch.tensor([3.0, 1.0], **F64).requires_grad_(), torch.tensor([2.0], **F64).requires_grad_()
    with gradtrace.record(names={"tiny": tiny, "strong": strong}) as tape:
        held = tiny
        for _ in range(4):
            held = held * 2.0**-300
        loss = (held * 3 + held).sum() + (strong * 3 + strong).sum()
    (early,) = joins_of(tape.trace(loss).forest(), ["tiny", "*"])[0].rows
    assert [b.weighted_share for b in early.branches] == [1, 0]
    assert early.paths == 2


@pytest.mark.parametrize("kind", ["best", "greedy"])
@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
def test_counts_of_heads_equal_following_every_trace(kind, per_example, blocks):
    """After the last block nothing comes together any more: all scalars go the same way, those of its heads too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), *(Attending() for _ in range(blocks)), nn.LayerNorm(4)).double()
    x = torch.randn(2, 3, 4, **F64)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().sum()
    _assert_counts_are_those_of_the_walk(tape, loss, kind, per_example=per_example)
    trace = tape.trace(loss)
    *_, last = [j for j in trace.joins("0.*", kind=kind).rows if j.operator == "add"]
    assert last.paths == trace.joins("0.*", kind=kind).paths


class Attending(nn.Module):
    """Attention of two heads beside a skip, as most write it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


@settings(max_examples=40, deadline=None)
@given(programs(exact=True))
def test_the_reference_counts_the_same(program):
    tape, loss = _recorded(program)
    forest = tape.trace(loss).forest()
    found = junctions(tape.record, forest.loss)
    slow = Forest(forest.record, forest.loss, "best", None, forest.edges, forest.winners, forest.log2)
    leaves = list(tape.leaves.values())
    (fast,), (plain,) = count(forest, found, [leaves]), count(slow, found, [leaves])
    assert fast.total[:, 0].tolist() == plain.total[:, 0].tolist()
    totals = zip(fast.total.sum(0), plain.total.sum(0), strict=True)
    unit = [a / b if b else 1.0 for a, b in totals]  # each counts weights in a unit of its own
    for a, b in zip(fast.came, plain.came, strict=True):
        assert a.ravel().tolist() == pytest.approx((b * unit).ravel().tolist())


@settings(max_examples=60, deadline=None)
@given(programs(exact=False))
def test_every_call_at_which_paths_meet_is_in_one_junction_and_shares_add_up(program):
    tape, loss = _recorded(program)
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


# ---------------------------------------------------------------- networks whose answer is known


def _trace(program, /, examples: Tensor | None = None, **leaves: Tensor) -> Trace:
    tape, loss = recorded(program, leaves, examples)
    return tape.trace(loss)


def _shares(join: Join) -> dict[str, float]:
    return {b.name: b.share for b in join.branches}


def _only(trace: Trace, of: str = "*", **options) -> Join:
    (join,) = trace.joins(of, **options).rows
    return join


def test_a_gate_and_what_it_lets_through():
    x = torch.tensor([0.1, 0.2, 5.0, -6.0], **F64, requires_grad=True)  # |x·σ′| > σ nowhere but far from 0 on one side
    join = _only(_trace(lambda x: (x * (3 * x).sigmoid()).sum(), x=x))
    gate = (x * (3 * x).sigmoid() * (1 - (3 * x).sigmoid()) * 3).abs() > (3 * x).sigmoid()
    assert (join.operator, join.fork, join.paths, join.share) == ("mul", "x", 4, 1)
    assert _shares(join) == {"around": 1 - gate.double().mean(), "gate": gate.double().mean()}
    assert 0 < gate.sum() < 4


def test_a_dead_branch_carries_nothing():
    x = torch.tensor([1.0, 2.0, 3.0], **F64, requires_grad=True)
    join = _only(_trace(lambda x: (0.01 * x + 100 * (-x).relu()).sum(), x=x))
    assert _shares(join) == {"mul": 1, "neg → relu → mul": 0}


def test_weighted_shares_count_strong_paths_more():
    x = drawn(4)
    scale = torch.tensor([0.5, 0.5, 0.5, 8.0], **F64)
    join = _only(_trace(lambda x: (x + x * scale).sum(), x=x))
    assert _shares(join) == {"around": 0.75, "mul": 0.25}
    assert join.branch("mul").weighted_share == pytest.approx(8 / 11)


def test_nested_residuals_are_two_joins_and_a_sum_of_three_is_one():
    x = drawn(3)

    def nested(x: Tensor) -> Tensor:
        inner = 2 * x
        inner = inner + inner.sin() * 0.01
        return (x + 3 * inner).sum()

    inner, outer = _trace(nested, x=x).joins().rows
    assert (_shares(inner)["around"], _shares(outer)["around"]) == (1, 0)
    assert (outer.fork, inner.fork) == ("x", "mul")
    join = _only(_trace(lambda x: (x + 2 * x + x.neg() * 3).sum(), x=x))
    assert _shares(join) == {"around": 0, "mul": 0, "neg → mul": 1}


def test_a_module_that_holds_its_own_addition_is_split_and_blocks_are_a_grid():
    trace = traced(Stack(0.1, 5.0, 0.2), torch.ones(1, 3, **F64))
    table = trace.joins("first*")
    (grid,) = table.grids()
    assert (grid.branches, grid.operator) == (("inner → output", "around"), "add")
    assert grid.pattern == "layer.*"
    assert grid.shares()[:, 1].tolist() == [1, 0, 1]
    assert [j.paths for j in grid.joins] == [12.0] * 3
    inside = trace.joins("layer.1.output*").rows  # it lives in a branch of its own block, and has a choice in the next
    assert [j.call for j in inside] == [table.rows[2].call]


class Dense(nn.Module):
    """DenseNet: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False).double()
        self.layers = nn.ModuleList(nn.Linear(2 * n, 2, bias=False).double() for n in (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return (torch.cat(found, 1) * torch.tensor([0.1, 0.1, 1.0, 1.0, 2.0, 2.0], **F64)).sum()


def test_a_dense_net():
    model = Dense()
    nn.init.constant_(model.layers[0].weight, 1.0)
    nn.init.constant_(model.layers[1].weight, 0.25)  # by layer 0 alone: 1; by layer 1, or both: 2/4; by neither: 1/10
    trace = traced(model, torch.ones(1, 2, **F64))
    (last,) = trace.joins("first*").rows  # to where layer 1 reads, no path comes
    assert _shares(last) == {"around": 0, "layers.0": 1, "layers.0 → layers.1": 0}
    of_layer = trace.joins("layers.0*").rows  # has two ways: its own result, and by the next layer
    assert [j.call for j in of_layer] == [last.call]
    assert [b.paths for b in of_layer[0].branches] == [0, 4, 0]


def test_a_module_that_is_used_twice_has_a_choice_of_uses():
    shared = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        shared.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
    model = nn.Sequential(shared, shared)
    (join,) = traced(model, torch.ones(1, 2, **F64)).joins().rows
    # ∂/∂w[i, j]: of the last use h[j], 2 or ½, and of the first w[i, i], 2 or ½; of equals the first wins
    assert (join.operator, join.fork) == ("mm", "0.weight")
    assert {b.name: b.paths for b in join.branches} == {"0": 3, "weight starts here": 1}


def test_a_recurrence_chooses_at_every_step():
    def steps(w: Tensor, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = w * h + 1.0
        return h

    w = torch.tensor(2.0, **F64, requires_grad=True)
    # ∂/∂w is h₂ = 7 of the last use, w·h₁ = 6 and w²·x = 4 of those before: no path comes to where those two meet
    join = _only(_trace(steps, w=w, x=torch.tensor(1.0, **F64)))
    assert {b.name: b.paths for b in join.branches} == {"around": 1, "mul → add": 0}
    early = _trace(steps, w=w, x=torch.tensor(9.0, **F64)).joins().rows  # h₁ = 19, h₂ = 39: 39, 38 and 36
    assert [max(j.branches, key=lambda b: b.paths).name for j in early] == ["around"]


def test_each_example_apart():
    x = torch.tensor([[1.0], [1.0], [1.0]], **F64, requires_grad=True)
    w = torch.tensor([[1.0]], **F64, requires_grad=True)
    scale = torch.tensor([[0.5], [2.0], [3.0]], **F64)

    def program(x: Tensor, w: Tensor) -> Tensor:
        h = x * w
        return (h + h * scale).sum()

    trace = _trace(program, x, x=x, w=w)
    join = _only(trace, "w", by_example=True)
    around, scaled = {"around": 1, "mul": 0}, {"around": 0, "mul": 1}
    assert [{b.name: b.share for b in one} for one in join.by_example] == [around, scaled, scaled]
    assert _shares(join) == {"around": pytest.approx(1 / 3), "mul": pytest.approx(2 / 3)}
    assert join.paths == 3


def test_heads_are_branches_and_add_up_to_what_leaves_attention():
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        model.attn.out_proj.weight[:, 2:] = 0  # the second head is not read
    trace = traced(model, torch.randn(2, 3, 4, **F64))
    (heads,) = [j for j in trace.joins("embed*").rows if j.operator == "heads"]
    assert _shares(heads) == {"head 0": 1, "head 1": 0}
    assert heads.paths == trace.joins("embed*").paths == 20  # all have to go through attention
    assert not [j for j in trace.joins("attn.in_proj*").rows if j.operator == "heads"]  # those live in a head


def test_a_table_prints_in_80_columns_and_gives_a_data_frame():
    trace = traced(Stack(*[0.1] * 40), torch.ones(1, 3, **F64))
    table = trace.joins("first*")
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 40
    frame = table.to_dataframe()
    assert len(frame) == 80
    assert {"home", "operator", "branch", "paths", "share", "weighted_share"} <= set(frame.columns)
    assert "<table>" in table._repr_html_()
    assert "all 122 parameters" in str(trace.joins())


def test_no_choice():
    trace = _trace(lambda x: (2 * x).sum(), x=drawn(3))
    assert trace.joins().rows == ()
    assert "no path had a choice" in str(trace.joins())


def test_branches_of_attention_are_called_by_what_they_are_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Attending(), Attending(), nn.Linear(4, 4)).double()
    grids = [g for g in traced(model, torch.randn(2, 3, 4, **F64)).joins().grids() if g.operator == "bmm"]
    assert {g.title: set(g.branches) for g in grids} == {
        "bmm of queries and keys": {"queries", "keys"},
        "bmm of weights (q, k) and values": {"weights (q, k)", "values"},
    }


class Recurrent(nn.Module):
    """Cells run step by step, which are given to a layer together with the last word."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.cell, self.last = nn.Embedding(5, 3), cell(3, 4), nn.Linear(3, 4)

    def forward(self, words: Tensor) -> Tensor:
        h = torch.zeros(len(words), 4)
        for t in range(words.shape[1]):
            x = self.embed(words[:, t])
            h = self.cell(x, h)
        return h + self.last(x)


def test_steps_of_a_recurrence_have_an_input_and_a_state_and_are_named_by_their_call():
    torch.manual_seed(0)
    table = traced(Recurrent(nn.RNNCell), torch.randint(5, (3, 5))).joins("embed*")
    step, last = table.grids()
    assert step.branches == ("state", "input") or step.branches == ("input", "state")
    labels = labels_of(step.joins)
    assert labels == [f"cell:{n}" for n in range(6 - len(labels), 6)]
    assert labels_of(last.joins) == ["after last"]
    assert {step.title, last.title} == {f"add of {' and '.join(step.branches)}", "add of cell:5 and last"}
    for cell in nn.RNN, nn.LSTM:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3), cell(3, 4), First(), nn.Linear(4, 2))
        grids = traced(model, torch.randint(5, (5, 3))).joins("0.*").grids()
        (weights,) = [g for g in grids if g.operator == "addmm"]
        assert set(weights.branches) == {"input", "state", "weight_hh_l0 starts here"}


class First(nn.Module):
    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        return given[0]


@pytest.mark.parametrize("fused", [False, True])
def test_no_two_grids_of_a_table_have_one_title(fused):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.LSTM(3, 4), First()) if fused else Recurrent(nn.GRUCell)
    grids = traced(model, torch.randint(5, (3, 5))).joins().grids()
    titles = [(g.pattern, g.title) for g in grids]
    assert len(set(titles)) == len(titles) > 3
    assert len({(g.pattern, g.operator) for g in grids}) < len(titles)
    for grid in grids:
        assert len(set(labels_of(grid.joins))) == len(grid.joins)


class Twice(nn.Module):
    """Two residual blocks; the stream between may be written in another basis."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False).double()
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False).double() for _ in range(2))
        self.out = nn.Linear(4, 2, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x).square()

    def rotate(self, by: Tensor) -> None:
        """Write the stream in another basis: the function stays the same."""
        with torch.no_grad():
            self.first.weight.copy_(by @ self.first.weight)
            for block in self.blocks:
                block.weight.copy_(by @ block.weight @ by.T)
            self.out.weight.copy_(self.out.weight @ by.T)


def test_parts_of_the_gradient_add_up_and_do_not_depend_on_the_basis():
    torch.manual_seed(1)
    model, x = Twice(), torch.randn(5, 3, **F64)
    tables = [traced(model, x).joins("first*", signed=True)]
    model.rotate(torch.linalg.qr(torch.randn(4, 4, **F64))[0])
    tables.append(traced(model, x).joins("first*", signed=True))
    for a, b in zip(*(t.rows for t in tables), strict=True):
        assert [x.norm for x in a.branches] == pytest.approx([x.norm for x in b.branches])
        assert [x.along for x in a.branches] == pytest.approx([x.along for x in b.branches])
        assert sum(x.along for x in a.branches) == pytest.approx(1)
    moved = [abs(a.around - b.around) for a, b in zip(*(t.rows for t in tables), strict=True)]
    assert max(moved) > 0  # shares do depend on it


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_a_part_is_the_gradient_with_the_other_branches_held(at_once, monkeypatch):
    monkeypatch.setattr(join_parts, "AT_ONCE", at_once)  # ways of several junctions share a walk
    torch.manual_seed(1)
    model, x = Twice(), torch.randn(5, 3, **F64)
    rows = traced(model, x).joins("first*", signed=True).rows
    weight = model.first.weight
    expected = []
    for held in range(len(model.blocks)):
        norms = []
        for through in (False, True):
            h = model.first(x)
            for n, block in enumerate(model.blocks):
                skip, more = h, block(h)
                if n == held:
                    skip, more = (skip.detach(), more) if through else (skip, more.detach())
                h = skip + more
            (gradient,) = torch.autograd.grad(model.out(h).square().sum(), weight)
            norms.append(float(gradient.norm()))
        expected.append(sorted(norms))
    assert len(rows) == 2
    found = sorted(sorted(b.norm for b in row.branches) for row in rows)
    assert found == [pytest.approx(norms) for norms in sorted(expected)]


def test_parts_of_the_gradient_by_hand():
    w = torch.tensor([2.0, -1.0], **F64, requires_grad=True)
    join = _trace(lambda w: (3 * w - w.square()).sum(), w=w).joins(signed=True).rows[0]  # 3 - 2w = -1, 5
    assert [(b.name, b.norm) for b in join.branches] == [
        ("mul", pytest.approx(18**0.5)),
        ("pow", pytest.approx(20**0.5)),
    ]
    assert [b.along for b in join.branches] == pytest.approx([(-3 + 15) / 26, (4 + 10) / 26])


def test_parts_of_heads_add_up_to_the_gradient():
    torch.manual_seed(0)
    trace = traced(Attention(), torch.randn(2, 3, 4, **F64))
    (heads,) = [j for j in trace.joins("embed.weight", signed=True).rows if j.operator == "heads"]
    assert sum(b.along for b in heads.branches) == pytest.approx(1)
    assert all(b.norm > 0 for b in heads.branches)
