"""Components: names, globs, instances, blocks and slices, against the calls and scalars that they should mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from checks import F64
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import GradtraceError, Tape, component, record
from gradtrace.errors import UnknownName
from gradtrace.recording.components import Membership, Slice, heads, known_components, matches, select_leaves, top_level
from gradtrace.recording.record import Scope


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(11))
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for _ in range(2):
            for layer in self.layers:
                x = layer(x)
        with component("activation"):
            x = x.tanh()
        return self.out(x)


@pytest.fixture(scope="module")
def tape() -> Tape:
    with record(model := Model().double()) as tape:
        model(torch.tensor([0, 3])).sum()
    return tape


# (pattern, how many linear calls of 22 and the output's own, of 1)
PATTERNS = {
    "layers.1": (2, 0),
    "layers.1:1": (1, 0),
    "layers.1:2": (1, 0),
    "layers.1:3": (0, 0),
    "layers.*": (22, 0),
    "layers.1?": (2, 0),
    "*": (22, 1),
    "out": (0, 1),
    "layers": (0, 0),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_names_globs_and_instances(tape, pattern):
    found = [c for c in tape.calls if matches(c, pattern)]
    expected_layers, expected_out = PATTERNS[pattern]
    assert sum(c.base == "addmm" for c in found) == expected_layers
    assert sum(c.base == "mm" for c in found) == expected_out


def test_top_level_components_are_the_outermost_scopes_in_order_of_use(tape):
    expected = ["embedding", *(f"layers.{i}" for i in range(11)), "activation", "out"]
    assert top_level(tape.record) == expected
    assert set(known_components(tape.record)) == {*expected, "layers"}


def test_leaves_are_selected_by_glob_and_by_the_name_of_a_tied_parameter(tape):
    def names(of: str | list[str]) -> list[str | None]:
        return [v.name for v in select_leaves(tape.record, of)]

    assert names("layers.1.*") == ["layers.1.weight", "layers.1.bias"]
    assert names("out.weight") == names("embedding*") == names(["out*", "emb*"]) == ["embedding.weight"]
    assert len(names("*")) == 23


def test_unknown_names_list_the_known_ones(tape):
    with pytest.raises(UnknownName, match=r"'bias'.*embedding\.weight, layers\.0\.weight"):
        select_leaves(tape.record, "bias")


class Heads(nn.Module):
    """Two attention heads, of which the second is not used by the loss."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        # the output projection of one head only
        with torch.no_grad():
            self.attn.out_proj.weight.zero_()
            self.attn.out_proj.weight[:, 2 * self.used : 2 * self.used + 2] = 1.0
        return self.attn(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("used", [0, 1])
def test_the_influence_of_each_attention_head(used):
    torch.manual_seed(0)
    model = Heads(used).double()
    x = torch.randn(2, 3, 4, **F64)
    assert heads(model) == [Slice("attn", "head", 2, 0), Slice("attn", "head", 2, 1)]
    with record(model, names={"x": x.requires_grad_()}) as tape:
        loss = model(x).pow(3).sum()
    table = tape.trace(loss).influence([Slice("attn", "head", 2)], "x")
    assert [r.component for r in table.rows] == ["attn[head 0]", "attn[head 1]"]
    assert [r.share for r in table.rows] == [1.0 - used, float(used)]


def test_slices_of_an_axis_are_components():
    w = torch.tensor([[1.0, 5.0], [3.0, 2.0]], **F64, requires_grad=True)
    model = nn.Identity()
    with record(nn.ModuleDict({"m": model}), names={"w": w}) as tape, component("m"):
        loss = (w * 1.0).amax(1).sum()
    first, second = tape.trace(loss).influence([Slice("m", 1, 2, 0), Slice("m", 1, 2, 1)], "w").rows
    assert (first.share, second.share) == (0.5, 0.5)
    assert (first.dead_share, second.dead_share) == (0.5, 0.5)


@pytest.mark.parametrize("arguments", [("m", "row", 2), ("m", 0, 0), ("m", 0, 2, 2), ("m", 0, 2, -1)])
def test_slices_that_make_no_sense_are_refused(arguments):
    with pytest.raises(GradtraceError, match=r"Slice|axis"):
        Slice(*arguments)


@pytest.mark.parametrize("need_weights", [True, False])
def test_heads_of_multihead_attention_share_its_paths(need_weights):
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.attention = nn.Embedding(20, 8), nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embedding(x)
            return self.attention(h, h, h, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model, x = Attentive(), torch.randint(0, 20, (3, 5))
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    rows = tape.trace(loss).influence(["attention", *heads(model)], of="embedding*").rows
    assert rows[0].share == pytest.approx(1)
    assert sum(r.share for r in rows[1:]) == pytest.approx(1)


def test_a_slice_of_nothing_is_an_error():
    model, x = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 2)), torch.randint(0, 20, (3, 5))
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    with pytest.raises(GradtraceError, match="no result in '1' has 5 along"):
        tape.trace(loss).influence([Slice("1", axis=2, of=5)])


names = st.sampled_from(["a", "b", "a.b", "a.c", "h[0]", "h0", ""])
patterns = st.one_of(
    names, st.sampled_from(["*", "a.*", "a?b", "h[0]", "h[[]0]", "a:2", "a.b:1", "h[0]:2", "*:1", ":1"])
)
scopes = st.builds(Scope, names, st.integers(1, 3))


@given(st.lists(st.lists(scopes, max_size=3), max_size=5), st.lists(patterns, max_size=6))
def test_members_of_many_components_are_those_of_each(calls, components):
    members = Membership(components)
    for around in calls:
        call = SimpleNamespace(scopes=tuple(around), name="aten.add.Tensor")
        one_by_one = sum(1 << i for i, c in enumerate(components) if matches(call, c))  # type: ignore[arg-type]
        assert members.of(call) == one_by_one  # type: ignore[arg-type]
