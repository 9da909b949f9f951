"""Influence tables against shares counted by hand, path by path."""

from __future__ import annotations

import cProfile
import math

import pytest
import torch
import torch.nn.functional as F
from checks import F64, leaf, recorded
from torch import Tensor, nn

from gradtrace import Graded, Through, Trace, component, record
from gradtrace.errors import NotSeen, UnknownName
from gradtrace.kernels import native
from gradtrace.queries.tables import InfluenceRow

COLUMNS = ["component", "share", "weighted_share", "dead_share", "examples"]


def _branches(x: Tensor) -> Tensor:
    with component("left"):
        a = x * torch.tensor([4.0, 1.0, 1.0, 0.0], **F64)
    with component("right"):
        b = x * torch.tensor([1.0, 2.0, 10.0, 0.0], **F64)
    return (a + b).sum()


def _rows(trace: Trace, *components: str, of: str = "*", **options: object) -> list[InfluenceRow]:
    return list(trace.influence(list(components) or None, of, **options).rows)  # type: ignore[arg-type]


def test_shares_by_hand():
    tape, loss = recorded(_branches, {"x": leaf(4)})
    left, right = _rows(tape.trace(loss), "left", "right")
    assert (left.share, left.weighted_share, left.dead_share) == (1 / 3, 4 / 16, 0.25)
    assert (right.share, right.weighted_share, right.dead_share) == (2 / 3, pytest.approx(12 / 16), 0.25)
    assert (left.examples, left.inside) == (1, False)


def test_greedy_weights_are_gradients():
    tape, loss = recorded(_branches, {"x": leaf(4)})
    left, right = _rows(tape.trace(loss), "left", "right", kind="greedy")
    assert (left.share, left.weighted_share) == (1 / 3, pytest.approx(5 / 19))
    assert (right.share, right.weighted_share) == (2 / 3, pytest.approx(14 / 19))


class Nested(nn.Module):
    """Two layers of which one is called twice, and a skip around both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.out = nn.Linear(3, 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        return self.out(x + self.block(x + self.block(x)))


@pytest.fixture(scope="module")
def nested() -> Trace:
    torch.manual_seed(0)
    model = Nested().double()
    with torch.no_grad():
        model.block[0].weight.mul_(3)
    words = torch.tensor([[0, 1, 2], [2, 3, 2]])
    with record(model, examples=words) as tape:
        loss = F.cross_entropy(model(words).flatten(0, 1), torch.tensor([0, 1, 1, 0, 0, 1]))
    return tape.trace(loss)


NAMES = ["embedding", "block", "block:1", "block:2", "block.*", "block.1:2", "out", "*"]


@pytest.mark.parametrize("kind", ["best", "greedy"])
@pytest.mark.parametrize("example", [None, 0, 1])
def test_shares_are_those_of_the_paths_one_by_one(nested, kind, example):
    forest = nested.forest(kind, per_example=example is not None)
    value = nested.tape.leaves["embedding.weight"]
    log2 = forest.log2[value.id][example or 0]
    live = [(i, j) for i in range(6) for j in range(3) if log2[i, j] > -math.inf]
    paths = {index: nested.path("embedding.weight", index, kind=kind, example=example) for index in live}
    table = nested.influence(NAMES, "embedding*", kind=kind, per_example=example is not None)
    rows = table.rows if example is None else table.by_example[example]
    for row in rows:
        own, _, call = row.component.partition(":")
        crossing = [index for index, path in paths.items() if _crosses(path.components, own, call)]
        weights = {index: 2.0 ** float(log2[index]) for index in live}
        assert row.share == len(crossing) / len(live), row.component
        assert row.weighted_share == pytest.approx(sum(weights[i] for i in crossing) / sum(weights.values()))
        assert row.dead_share == pytest.approx(1 - len(live) / 18)
    assert 0 < rows[1].share < 1 or kind == "greedy"


def _crosses(scopes: tuple[str, ...], name: str, call: str) -> bool:
    """Write out what a component's name means."""
    for scope in scopes:
        module, _, instance = scope.partition(":")
        named = {"block.*": module.startswith("block."), "*": True}.get(name, module == name)
        if named and call in ("", instance or "1"):
            return True
    return False


def test_the_outermost_modules_are_the_default(nested):
    assert [r.component for r in nested.influence().rows] == ["embedding", "block", "out"]


def test_parameters_that_live_inside_a_component_are_marked(nested):
    assert [r.inside for r in _rows(nested, "embedding", "block", "block:2", of="embedding*")] == [True, False, False]
    assert [r.inside for r in _rows(nested, "block", "block.*", "block.0", of="block*")] == [True, True, True]
    table = nested.influence(["block", "out"], "block*")
    assert "inside" in next(line for line in str(table).splitlines() if line.startswith("block"))
    assert "inside" not in next(line for line in str(table).splitlines() if line.startswith("out"))


def test_a_data_frame_has_a_row_a_component(nested):
    frame = nested.influence(["block", "out"], "embedding*").to_dataframe()
    assert list(frame.columns[:5]) == COLUMNS
    assert list(frame["component"]) == ["block", "out"]
    assert list(frame["examples"]) == [2, 2]
    assert frame["share"].between(0, 1).all()


def test_a_table_prints_components_by_share_with_its_kind_and_group(nested):
    head, columns, *lines = str(nested.influence(["block", "out"], "embedding*", kind="greedy")).splitlines()
    assert head == "greedy influence on embedding.weight"
    assert columns.split() == ["component", "share", "weighted", "dead", "examples"]
    assert [line.split()[0] for line in lines] == ["out", "block"]
    assert "100.0%" in lines[0]


def test_unknown_components_and_groups_list_the_known_ones(nested):
    with pytest.raises(UnknownName, match=r"'blok'.*block, block\.0, block\.1, embedding, out"):
        nested.influence(["block", "blok"])
    with pytest.raises(UnknownName, match=r"'rnn\*'.*embedding\.weight, block\.0\.weight"):
        nested.influence(of="rnn*")
    with pytest.raises(UnknownName, match="block:3"):
        nested.influence("block:3")


def test_a_module_that_was_never_called_has_no_influence():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)}).double()
    with record(model) as tape:
        loss = model["used"](torch.ones(1, 2, **F64)).sum()
    rows = tape.trace(loss).influence(["used", "idle"], "used.weight").rows
    assert [r.share for r in rows] == [1.0, 0.0]
    idle = tape.trace(loss).influence(["used"], "idle*").rows[0]
    assert (idle.dead_share, math.isnan(idle.share), math.isnan(idle.weighted_share)) == (1.0, True, True)


def test_more_components_than_bits_in_a_word():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(130))).double()
    torch.manual_seed(0)
    with record(model) as tape:
        x = h = torch.ones(1, 2, **F64)
        for i, layer in enumerate(model):
            h = layer(h) if i % 3 else h + 0.5 * layer(x)
        loss = h.sum()
    trace = tape.trace(loss)
    names = [str(i) for i in range(130)]
    together = trace.influence(names, ["5.weight", "64.bias"]).rows
    alone = [trace.influence(n, ["5.weight", "64.bias"]).rows[0] for n in names]
    assert list(together) == alone
    assert len({r.share for r in together}) > 1


def test_weights_below_the_range_of_floats_keep_their_proportions():
    def tiny(x: Tensor, y: Tensor) -> Tensor:
        with component("c"):
            a = x * 1.0
        b = y * 3.0
        total = torch.cat([a, b])
        for _ in range(40):
            total = total * 2.0**-60
        return total.sum()

    tape, loss = recorded(tiny, {"x": leaf(1), "y": leaf(1)})
    row = tape.trace(loss).influence("c").rows[0]
    assert (row.share, row.weighted_share) == (0.5, pytest.approx(0.25))


def test_an_infinite_weight_takes_the_whole_weighted_share():
    def program(x: Tensor) -> Tensor:
        with component("root"):
            return x.sqrt().sum()

    tape, loss = recorded(program, {"x": torch.tensor([0.0, 4.0], **F64, requires_grad=True)})
    row = tape.trace(loss).influence("root").rows[0]
    assert (row.share, row.weighted_share) == (1.0, 1.0)


def test_tied_parameters_count_once_under_either_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)}).double()
    model["b"].weight = model["a"].weight
    with record(model) as tape:
        loss = model["b"](model["a"](torch.ones(1, 2, **F64))).sum()
    trace = tape.trace(loss)
    assert trace.influence("a", "b.weight").rows == trace.influence("a", "a.weight").rows
    assert trace.influence("a", ["a*", "b*"]).of == ("a.weight",)


def stack(depth: int, skip: bool) -> Trace:
    """Layers, each around a skip connection or not: where there is one, scalars of one value go different ways."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(depth)]).double()
    x = torch.randn(2, 2, **F64)
    with record(layers, examples=x) as tape:
        h = x
        for layer in layers:
            h = layer(h) + 0.9 * h if skip else layer(h)
        loss = h.sum()
    return tape.trace(loss)


@pytest.mark.parametrize("skip", [False, True])
def test_more_components_than_an_integer_has_bits(skip):
    trace = stack(70, skip)
    table = trace.influence()
    assert [r.component for r in table.rows] == [str(i) for i in range(70)]
    for number in (0, 1, 63, 64, 69):
        alone = trace.influence([str(number)])
        found = [alone.rows[0], *(rows[0] for rows in alone.by_example)]
        expected = [table.rows[number], *(rows[number] for rows in table.by_example)]
        assert [(r.component, r.share, r.dead_share) for r in found] == [
            (r.component, r.share, r.dead_share) for r in expected
        ]
        assert [r.weighted_share for r in found] == pytest.approx([r.weighted_share for r in expected], rel=1e-12)


@pytest.mark.skipif(not native.available(), reason="the reference looks sets up for every call")
def test_the_work_grows_as_the_depth_does():
    """Work is counted in Python's calls, which no busy machine changes."""

    def work(depth: int) -> int:
        trace = stack(depth, skip=False)
        trace.influence()  # the trace itself
        profile = cProfile.Profile()
        profile.runcall(trace.influence)
        return sum(entry.callcount for entry in profile.getstats())

    assert work(320) < 4.5 * work(80)


class Shy(nn.Module):
    """A list that is never called, a layer used by its weight, one by its forward, and one that runs no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([nn.Linear(3, 3)])
        self.by_weight, self.by_forward, self.off = nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout()
        self.whole, self.idle = nn.Sequential(nn.Linear(3, 1)), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.members[0](x), self.by_weight.weight)
        return self.whole(self.off(self.by_forward.forward(x)))


def test_what_was_not_seen_has_no_share():
    torch.manual_seed(0)
    model = Shy().double().eval()
    with record(model, examples=(x := torch.randn(2, 3, **F64))) as tape:
        loss = model(x).square().sum()
    trace = tape.trace(loss)
    table = trace.influence(["members", "by_weight", "by_forward", "off", "idle", "whole", "members.*", "by_*"])
    rows = {r.component: r for r in table.rows}
    for name in ("members", "by_weight", "by_forward", "by_*"):
        assert (rows[name].seen, math.isnan(rows[name].share)) == (False, True), name
    assert [(rows[n].seen, rows[n].share) for n in ("off", "idle", "whole")] == [(True, 0), (True, 0), (True, 1)]
    assert rows["members.*"].share > 0
    assert "members, by_weight, by_forward, by_*: no call of it was seen" in str(table)
    assert [line.split()[1:3] for line in str(table).splitlines() if line.startswith("by_weight ")] == [["–", "–"]]
    assert [r.seen for r in trace.influence(["by_weight"]).by_example[1]] == [False]
    for semiring in (Through("by_weight"), Graded(by=("off", "by_weight"))):
        with pytest.raises(NotSeen, match="by_weight exists, but no call of it was seen"):
            tape.grad(loss, "by_weight.weight", semiring)


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("made", ["scripted", "traced"])
def test_modules_inside_torchscript_are_not_seen(made):
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    model = torch.jit.script(plain) if made == "scripted" else torch.jit.trace(plain, x)
    with record(plain, examples=x) as tape:
        loss = plain(x).sum()
    expected = tape.trace(loss)
    with record(model, examples=x) as tape:
        loss = model(x).sum()
    trace = tape.trace(loss, check=True)
    assert all(torch.equal(trace.strength[n], expected.strength[n]) for n in expected.strength)
    assert [(r.seen, math.isnan(r.share)) for r in trace.influence(["0", "1", "2"]).rows] == [(False, True)] * 3
    whole = trace.influence()
    assert [r.component for r in whole.rows] == ["aten::addmm", "aten::relu", "aten::sum"]
    shares = {r.component: r.share for r in whole.rows}
    assert shares["aten::sum"] == 1
    assert shares["aten::relu"] == expected.influence("1").rows[0].share


def test_a_model_without_submodules_has_its_operators():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    with record(model) as tape:
        loss = model(torch.ones(4, 3)).square().mean()
    trace = tape.trace(loss)
    rows = trace.influence().rows
    assert [(r.component, r.share, r.inside) for r in rows] == [
        (f"aten::{n}", 1.0, False) for n in ("addmm", "pow", "mean")
    ]
    by = {str(c): c for c in ("aten::pow", "aten::mean")}
    through, around = tape.grad(loss, "bias", Through(tuple(by)))[0].reshape(2, 2, -1).abs().sum(-1)
    assert (through > 0).all()
    assert (around == 0).all()
    with pytest.raises(UnknownName, match=r"unknown component 'aten::relu'; there are aten::addmm, aten::pow"):
        trace.influence(["aten::relu"])


def test_operators_are_components_beside_modules(nested):
    rows = {r.component: r for r in nested.influence(["block", "aten::tanh", "aten::embedding"], "embedding*").rows}
    paths = [nested.path("embedding.weight", (i, j), example=b) for b in (0, 1) for i, j in _live(nested, b)]
    for name, row in rows.items():
        own = [any(s.operator == f"{name.replace('::', '.')}.default" for s in p.steps) for p in paths]
        assert row.share == (sum(own) / len(own) if "::" in name else row.share)
    assert 0 < rows["aten::tanh"].share == rows["block"].share < 1
    assert rows["aten::embedding"].share == 1


def _live(trace: Trace, example: int) -> list[tuple[int, int]]:
    log2 = trace.forest("best", per_example=True).log2[trace.tape.leaves["embedding.weight"].id][example]
    return [(int(i), int(j)) for i, j in (log2 > -math.inf).nonzero()]


def test_frozen_parameters_say_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    with record(model) as tape:
        loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(UnknownName, match=r"0\.bias, 0\.weight: frozen"):
        tape.trace(loss).influence(of="0.*")
    assert tape.trace(loss).influence(of="*").of == ("1.weight", "1.bias")


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("kind", ["native", "reference"])
def test_more_components_than_an_integer_has_bits_where_paths_differ(kind, examples):
    torch.manual_seed(0)
    model, x = nn.ModuleList(nn.Linear(3, 3) for _ in range(70)).double(), torch.randn(2, 3, **F64)
    with native.using(kind):
        with record(model, examples=x if examples else None) as tape:
            h = x
            for layer in model:
                h = 0.4 * h + layer(h).tanh()
            loss = h.square().sum()
        trace = tape.trace(loss)
        names = [str(n) for n in range(70)]
        together = trace.influence(names).rows
        alone = [row for n in range(0, 70, 10) for row in trace.influence(names[n : n + 10]).rows]
    assert len({row.share for row in together}) > 20  # paths differ
    for one, other in zip(together, alone, strict=True):
        assert one.share == pytest.approx(other.share)
        assert one.weighted_share == pytest.approx(other.weighted_share)
        assert (one.component, one.inside, one.dead_share) == (other.component, other.inside, other.dead_share)
