"""Findings: every figure again from the tables; and what stands out in networks whose answer is known."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import re
from pathlib import Path

import joined
import pytest
import torch
from checks import F64, recorded
from checks import leaf as drawn
from joined import Attention, Stack, Stuck, assert_read_off_its_tables, traced
from torch import Tensor, nn

import gradtrace
from gradtrace import Trace, record
from gradtrace.errors import BadArgument
from gradtrace.queries.lost import gathered
from gradtrace.queries.summary import Summary
from gradtrace.report.history import History


def _of(model: nn.Module, *shape: int) -> tuple[Trace, Summary]:
    return _of_input(model, torch.ones(shape, **F64))


def _of_input(model: nn.Module, x: Tensor) -> tuple[Trace, Summary]:
    trace = traced(model, x)
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    return trace, summary


def _said(summary: Summary, kind: str) -> list[str]:
    return [f.text for f in summary.findings if f.kind == kind]


def test_what_is_bypassed():
    _, summary = _of(Stack(0.1, 0.1, 0.1), 1, 3)
    assert "- 100% go around inner" in str(summary)
    assert _said(summary, "around") == [
        "100% of the paths from first (one for each scalar) go around inner → output at the 3 additions of layer.*."
    ]
    assert not _said(summary, "nothing")


def test_what_is_taken():
    _, summary = _of(Stack(5.0, 5.0), 1, 3)
    assert _said(summary, "through") == [
        "100% of the paths from first (one for each scalar) take inner → output at the 2 additions of layer.*, "
        "none around."
    ]


def test_what_differs_from_its_siblings():
    _, summary = _of(Stack(0.1, 0.1, 0.1, 5.0, 0.1, 0.1), 1, 3)
    assert _said(summary, "odd") == [
        "layer.3 differs from its siblings: 0% go around, and 100% at the median.",
    ]


def test_what_is_idle():
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        model.attn.out_proj.weight[:, 2:] = 0
    _, summary = _of(model, 2, 3, 4)
    assert _said(summary, "idle") == ["1 of the 2 heads in attn carries next to nothing: head 1."]


def test_heads_to_which_few_paths_come_are_not_told():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model, x = nn.Sequential(nn.Embedding(50, 8), encoder, nn.Linear(8, 50)), torch.randint(50, (2, 5))
    with record(model, examples=x) as tape:
        loss = nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    trace = tape.trace(loss)
    few, many = (join for join in trace.joins(kind="best").rows if join.operator == "heads")
    assert few.paths < 20 < many.paths
    assert _said(trace.summary(kind="best"), "idle") == [
        f"1 of the 2 heads in *.layers.*.self_attn carries next to nothing: head 0 of {many.home}."
    ]
    assert not _said(trace.summary(kind="best"), "load")


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_nobody_reads_are_usual(make):
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": make(400, 8), "out": nn.Linear(8, 3)})
    x = torch.randint(400, (4, 3))
    with record(model, examples=x) as tape:
        loss = model["out"](model["table"](x)).square().mean()
    assert not _said(tape.trace(loss).summary(), "dead")


def test_what_is_dead():
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        model.attn.out_proj.weight.zero_()
    trace = traced(model, torch.ones(2, 3, 4, **F64))
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    (text,) = _said(summary, "dead")
    assert text == (
        "embed, attn.in_proj_weight and attn.in_proj_bias get no gradient (4 of the 6 parameters): "
        "attn.out_proj.weight is 0 everywhere."
    )
    assert summary.early.of == ("attn.out_proj.weight", "attn.out_proj.bias")  # the first from which a path leads


def test_what_is_lost_is_said_first_with_its_place():
    trace, summary = _of(Stuck(), 2, 3)
    dead, vanished, *others = (f.text for f in summary.findings)
    line = _line_of("self.below(x).relu()")
    assert dead == (
        "below and squeeze.weight get no gradient (3 of the 12 parameters): "
        f"relu after below is off everywhere (joined.py:{line})."
    )
    line = _line_of("torch.sigmoid(self.gate(x))")
    start = "The product with sigmoid shrinks the paths from squeeze (one for each scalar) about "
    assert re.fullmatch(rf"{re.escape(start)}[\d,]+-fold, by 2\^-1[23] \(joined\.py:{line}\)\.", vanished)
    assert any("none by gate" in text for text in others)
    assert not _said(traced(Stuck(3.0), torch.ones(2, 3, **F64)).summary(), "vanished")
    said = trace.why("squeeze.weight")
    assert "is off" in said.said
    assert "aten.relu" in said.where[0]


def deep(activation: type[nn.Module], layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(16, 16), activation())]).double()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_that_fall_or_grow_all_the_way_are_told_in_autograds_numbers(scale):
    model = deep(nn.Sigmoid, 10) if scale == 1 else Growing(8, scale)
    x = torch.randn(8, 16, **F64)
    _, summary = _of_input(model, x)
    (finding,) = [f for f in summary.findings if f.kind == "fading"]
    model(x).sum().backward()
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1]
    size = {name: model.get_parameter(name).grad.square().mean().log2().item() / 2 for name in matrices}
    first, last = matrices[0], matrices[-1]
    assert finding.figure == pytest.approx(size[first] - size[last])
    word, fold = ("fall", "smaller") if scale == 1 else ("grow", "larger")
    each = 2 ** (abs(finding.figure) / (len(matrices) - 1))
    assert finding.text == (
        f"Gradients {word} from layer to layer on the way back: of {last} they are 2^{size[last]:.0f}, of {first} "
        f"2^{size[first]:.0f} (root mean squares), about {each:.2g} times {fold} at each of {len(matrices) - 1} steps."
    )


class Growing(nn.Module):
    """Layers whose results are small again, and whose derivatives are not."""

    def __init__(self, layers: int, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers)).double()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (self.scale * layer(x)).sin()
        return x


def test_gradients_of_layers_alike_or_few_are_not_said_to_fall():
    x = torch.randn(8, 16, **F64)
    assert not _said(_of_input(deep(nn.Tanh, 10), x)[1], "fading")
    assert not _said(_of_input(deep(nn.Sigmoid, 3), x)[1], "fading")
    assert not _said(traced(deep(nn.Sigmoid, 10), x).summary(kind="best"), "fading")  # which knows no gradient


def test_falling_gradients_are_said_of_a_saved_trace(tmp_path):
    trace = traced(deep(nn.Sigmoid, 10), torch.randn(8, 16, **F64))
    kept = gradtrace.load(trace.save(tmp_path / "trace.gradtrace"))
    assert _said(kept.summary(), "fading") == _said(trace.summary(), "fading") != []


def test_small_weights_that_a_norm_makes_up_for_take_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3, eps=1e-30), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[1].weight *= 2**-20
        model[1].bias.zero_()
    x = torch.randn(4, 3, **F64)
    assert not _said(traced(model, x).summary(), "vanished")
    (text,) = _said(traced(nn.Sequential(model[0], model[1], model[3]), x).summary(), "vanished")
    assert text.startswith("addmm in 1 shrinks the paths from 0 ")


def _line_of(code: str) -> int:
    lines = Path(joined.__file__).read_text(encoding="utf-8").splitlines()
    return 1 + next(n for n, line in enumerate(lines) if code in line)


class Cut(nn.Module):
    """Layers of which one is not used, one is detached, one has no words, and one is used for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 3).double()
        self.spare, self.thrown, self.out = (nn.Linear(3, 3).double() for _ in range(3))
        self.cut = nn.Linear(3, 50).double()
        self.empty = nn.ModuleList(nn.ModuleDict({"w": nn.Linear(3, 3).double()}) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        self.thrown(x).tanh()
        for part in self.empty:
            x = x + part["w"](x[x[:, 0] > 99]).sum(0)
        return self.out(x + self.cut(x).detach().sum())


def test_each_cause_of_death_is_said_and_words_that_do_not_occur_are_not():
    torch.manual_seed(0)
    _, summary = _of_input(Cut(), torch.arange(4))
    texts = _said(summary, "dead")
    cut, empty, rest = texts  # the most scalars first
    where = r"\(test_findings\.py:\d+\)\."
    assert re.fullmatch(rf"cut gets no gradient \(2 of the 21 parameters\): autograd stops at detach {where}", cut)
    assert re.fullmatch(rf"empty gets no gradient \(12 of the 21 parameters\): index picks nothing {where}", empty)
    assert rest == "spare and thrown get no gradient (4 of the 21 parameters)."


def test_a_parameter_of_which_nearly_all_is_dead_is_named():
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    with torch.no_grad():
        model[0].bias[:38] = -90
        model[0].bias[38:] = 90
    _, summary = _of(model, 2, 3)
    (text,) = _said(summary, "dead")
    assert text == "Nearly all scalars get no gradient in 0.weight (95.0%), 0.bias (95.0%) and 2.weight (95.0%)."
    with torch.no_grad():
        model[0].bias[20:] = 90  # half of the units are off, as is usual
    _, summary = _of(model, 2, 3)
    assert not _said(summary, "dead")


def test_dead_parameters_are_named_by_modules_or_patterns():
    every = [
        "conv.weight",
        "conv.bias",
        "fc.weight",
        "fc.bias",
        *(f"h.{n}.{w}" for n in range(9) for w in "ab"),
        "out.w",
    ]
    assert gathered(["conv.weight", "conv.bias", "fc.weight"], every) == ["conv", "fc.weight"]
    assert gathered([n for n in every if n.startswith("h")], every) == ["h"]
    assert gathered([f"h.{n}.a" for n in range(9)], every) == ["h.*.a"]
    assert gathered([f"h.{n}.a" for n in range(5)], every) == [
        f"h.{n}.a" for n in range(5)
    ]  # a star would say too much


def test_a_loaded_trace_says_what_is_dead_and_vanishes(tmp_path):
    model = Stuck()
    with gradtrace.record(model) as tape:
        loss = model(torch.ones(2, 3, **F64)).sum()
    trace = tape.trace(loss)
    live = trace.summary()
    trace.save(tmp_path / "stuck.gradtrace", kinds=("greedy",))
    texts = [f.text for f in gradtrace.load(tmp_path / "stuck.gradtrace").summary().findings]
    assert texts[0] == "below and squeeze.weight get no gradient (3 of the 12 parameters)."
    assert texts[1:] == [f.text for f in live.findings[1:]]


def test_a_trend_down_the_layers_is_said():
    _, summary = _of(Stack(*(4.0 * 0.55**n for n in range(8))), 1, 3)
    assert _said(summary, "trend") == []  # a scalar goes one way or the other: it turns at once
    torch.manual_seed(0)
    model = Stack(*[1.0] * 6)
    for n, layer in enumerate(model.layer):
        layer["output"].dense.weight.data = torch.diag(torch.tensor([4.0, 2.0, 1.4], **F64) * 0.6**n)
    _, summary = _of(model, 1, 3)
    (text,) = _said(summary, "trend")
    assert re.search(
        r"divide at the 6 additions of layer\.\*: from layer\.0 to layer\.5 \S+.* rises from \S+% to 100%\.", text
    )


def test_an_order_that_weights_turn_around_is_said_both_ways():
    scale = torch.tensor([0.5, 0.5, 0.5, 30.0], **F64)
    tape, loss = recorded(lambda x: (x + x * scale).sum(), {"x": drawn(4)})
    trace = tape.trace(loss)
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    assert _said(summary, "divided") == [
        "The paths from x (one for each scalar) divide at the addition: around 75% and mul 25%; "
        "by weight mul 87.3% and around 12.7%."
    ]


def test_some_joins_of_a_grid_are_told_by_their_branches():
    torch.manual_seed(0)
    trace = traced(Down(), torch.randn(2, 3, **F64))
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    texts = " ".join(f.text for f in summary.findings)
    assert "at 2 of the 4 additions of blocks.* (those with a way around)" in texts
    assert "at 2 of the 4 additions of blocks.* (those with skip)" in texts


class Down(nn.Module):
    """Blocks of which some have a layer in the skip's place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3).double()
        self.blocks = nn.ModuleList(Skipping(n % 2 == 1) for n in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Skipping(nn.Module):
    def __init__(self, layered: bool) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3).double()
        self.skip = nn.Linear(3, 3).double() if layered else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class Masked(nn.Module):
    """A mask lets nothing through of some examples; a head sees all of them."""

    def __init__(self, mask: list[float]) -> None:
        super().__init__()
        self.mask = torch.tensor(mask, **F64)[:, None]
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.mask)


def by_example(model: nn.Module, x: Tensor) -> Trace:
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).sum()
    return tape.trace(loss)


def test_examples_of_which_nothing_reaches_half_of_the_parameters_are_named():
    trace = by_example(Masked([1, 0, 1, 0]), torch.randn(4, 3, **F64))
    text = "In 2 of the 4 examples (1 and 3) no path leads from first and second.weight to the loss."
    assert _said(trace.summary(), "examples") == [text]
    for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
        rows = trace.influence("", name, per_example=True, kind="greedy").by_example
        dead = [e for e, table in enumerate(rows) if table[0].dead_share == 1]
        assert dead == ([] if name == "second.bias" else [1, 3])
    assert not _said(trace.summary(per_example=False), "examples")
    assert not _said(by_example(Masked([1, 1, 1, 1]), torch.randn(4, 3, **F64)).summary(), "examples")


class Partly(nn.Module):
    """Of eight numbers, each layer makes some larger, by its own branch, and leaves the others alone."""

    def __init__(self, *strong: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False).double()
        self.layer = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in strong).double()
        self.first.weight.data = torch.eye(8, **F64)
        for inner, count in zip(self.layer, strong, strict=True):
            inner.weight.data = torch.tensor([5.0] * count + [0.1] * (8 - count), **F64).diag()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for inner in self.layer:
            x = x + inner(x)
        return x


def test_a_layer_is_compared_with_its_siblings_and_not_with_itself():
    trace, summary = _of(Partly(1, 0, 3, 8), 1, 8)
    around = [row.branches[0].share for row in trace.joins(["first*"], kind="greedy").rows]
    assert sorted(around) == [0.0, 0.625, 0.875, 1.0]
    (text,) = _said(summary, "odd")
    assert text.endswith("0% go around, and 87.5% at the median.")


def test_a_summary_counts_as_a_report_does():
    trace = by_example(Stack(0.1, 5.0), torch.randn(4, 3, **F64))
    assert "one for each scalar and example" in str(trace.summary()).replace("\n", " ")
    assert "and example" not in str(trace.summary(per_example=False)).replace("\n", " ")


class Beside(nn.Module):
    """Two modules side by side, and a way around both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mean, self.spread, self.out = (nn.Linear(3, 3).double() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.mean(x) * self.spread(x).exp())


def test_modules_side_by_side_are_no_chain():
    torch.manual_seed(0)
    trace = traced(Beside(), torch.ones(2, 3, **F64))
    names = {b.name for row in trace.joins().rows for b in row.branches}
    assert "mean & spread" in names
    assert not any("mean → spread" in name for name in names)


def test_few_joins_that_differ_are_told_one_by_one():
    _, summary = _of(Stack(0.1, 5.0), 1, 3)
    (text,) = [f.text for f in summary.findings if "2 additions" in f.text]
    assert "around 50% (layer.0 100%, layer.1 0%)" in text


def test_nothing_remarkable_is_said_to_be_so():
    scale = torch.tensor([0.5, 2.0, 0.5, 2.0], **F64)
    tape, loss = recorded(lambda x: (x + x * scale).sum(), {"x": drawn(4)})
    summary = tape.trace(loss).summary()
    assert [f.kind for f in summary.findings] == ["divided", "nothing"]
    assert summary.findings[0].text == (
        "The paths from x (one for each scalar) divide at the addition: around 50% and mul 50%."
    )
    assert "Nothing stands out" in str(summary)


def test_paths_that_weigh_nothing_are_counted_all_the_same():
    """Gradients of 1 - 4 softmax(0) = 0: greedy paths go on, and weigh 0."""
    x, spare = torch.zeros(4, **F64, requires_grad=True), torch.zeros(2, **F64, requires_grad=True)
    tape, loss = recorded(lambda x, spare: (x - x.logsumexp(0)).sum(), {"x": x, "spare": spare})
    trace = tape.trace(loss)
    assert trace.joins(kind="greedy").weight == 0
    texts = [f.text for f in trace.summary().findings]
    assert texts[0] == "spare gets no gradient (1 of the 2 parameters): not used in the recorded forward pass."
    assert texts[1] == "100% of the paths from x (one for each scalar) take logsumexp at the difference, none around."


def test_no_choice_is_said_to_be_none():
    _, summary = _of(nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double(), 1, 3)
    (finding,) = summary.findings
    assert finding.kind == "nothing"
    assert "have no choice" in finding.text


@pytest.mark.parametrize("count", [1, 40])
def test_a_summary_has_ten_lines_at_most_of_eighty_columns(count):
    _, summary = _of(Stack(*[0.1, 5.0] * count), 1, 3)
    lines = str(summary).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    begins = r"loss .*; greedy paths from first, 12 of them, one for each scalar that has one:"
    assert re.match(begins, str(summary).replace("\n", " "))


def test_a_summary_of_other_parameters():
    trace = traced(Stack(0.1, 5.0), torch.ones(1, 3, **F64))
    assert "layer.0.inner" in str(trace.summary("layer.0.inner*"))
    assert trace.summary(kind="greedy").early.kind == "greedy"


def test_plots_give_their_axes():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    trace = traced(Stack(0.1, 5.0), torch.ones(1, 3, **F64))
    table = trace.joins("first*")
    drawings: list = [table, trace.influence(["layer.0.inner", "first"]), trace.flow("first*"), trace.layers()]
    for drawing in drawings:
        fresh, (_, own) = drawing.plot(), pyplot.subplots()
        assert drawing.plot(ax=own) is own
        assert own.get_children()
        assert fresh is not own
    assert [t.get_text() for t in table.plot().get_xticklabels()] == ["inner → output", "around"]
    with pytest.raises(BadArgument, match=r"no joins at 'x'; there are 'layer\.\*'"):
        table.plot(pattern="x")
    pyplot.close("all")


def test_the_plot_of_layers_has_their_numbers():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    layers = traced(Stack(0.1, 5.0), torch.ones(1, 3, **F64)).layers()
    ax = layers.plot()
    own = {row.module: row for row in layers.rows if row.module and row.parameters}
    assert [t.get_text() for t in ax.get_yticklabels()] == [*own]
    for line, column in zip(ax.get_lines(), ("log2_gradient", "log2_strongest"), strict=True):
        assert [*line.get_xdata()] == pytest.approx([getattr(row, column) for row in own.values()])
    pyplot.close("all")


def test_notebooks_show_tables_in_which_names_are_text():
    trace = traced(Stack(0.1, 5.0), torch.ones(1, 3, **F64))
    table, flow, summary = trace.influence(["layer.0.inner"], of="*"), trace.flow(), trace.summary()
    assert f"on all {len(trace.tape.leaves)} parameters</p>" in table._repr_html_()
    assert f"<td style='text-align:right'>{table.rows[0].share:.1%}</td>" in table._repr_html_()
    assert flow._repr_html_().count("<tr>") == 1 + min(20, len(flow.links))
    assert all(html.escape(finding.text) in summary._repr_html_() for finding in summary.findings)
    row = dataclasses.replace(table.rows[0], component="<b>", inside=False, seen=False)
    odd = dataclasses.replace(table, rows=(row,))
    assert "&lt;b&gt; (not seen)" in odd._repr_html_()
    row = {"of": "first*", "kind": "best", "component": "<rnn>", "share": 0.5}
    steps = [{"step": 0, "influence": [row]}, {"step": 100, "influence": [row | {"share": None}]}]
    shown = History(traces=steps)._repr_html_()
    assert "2 traces, steps 0 to 100" in shown
    assert "&lt;rnn&gt;</td><td style='text-align:right'>50.0%</td><td style='text-align:right'>–</td>" in shown
    assert "0 traces" in History()._repr_html_()


def test_the_plot_of_a_history_has_a_line_for_each_component():
    pytest.importorskip("matplotlib.pyplot").close("all")
    row = {"of": "first*", "kind": "best", "component": "rnn", "share": 0.5}
    rows = [row, row | {"component": "gru", "share": None}, row | {"kind": "greedy"}]
    ax = History(traces=[{"step": step, "influence": rows} for step in (0, 100)]).plot()
    assert [(line.get_label(), [*line.get_xdata()]) for line in ax.get_lines()] == [("rnn", [0, 100])]
    assert ax.get_ylabel() == "share of the best paths from first*"


def test_plots_without_matplotlib_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    tape, loss = recorded(lambda x: (x + x.sin()).sum(), {"x": drawn(3)})
    with pytest.raises(BadArgument, match=r"pip install 'gradtrace\[draw\]'"):
        tape.trace(loss).joins().plot()


def test_the_page_of_the_docs_prints_what_it_says():
    text = (Path(__file__).parents[2] / "docs" / "joins.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"prints\n\n```text\n(.*?)```", text, re.DOTALL)
    known: dict = {}
    assert _printed(first, known) == printed.splitlines()
    assert sum(float(line.rpartition(" ")[2]) for line in _printed(second, known)) == pytest.approx(1, abs=2e-3)


def _printed(code: str, known: dict) -> list[str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, known)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_value_that_comes_into_a_product_twice_is_no_finding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 3)).double()
    trace, summary = _of(model, 2, 4)
    names = {b.name for row in trace.joins(kind="greedy").rows for b in row.branches}
    assert "around (part 0)" in names
    assert "around (" not in str(summary)
