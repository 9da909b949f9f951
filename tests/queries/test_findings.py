"""Findings: every figure again from the tables; and what stands out in networks whose answer is known."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import re
from pathlib import Path

import pytest
import torch
from checks import F64, recorded
from checks import leaf as drawn
from joined import Attention, Stack, assert_read_off_its_tables, traced
from torch import nn

from gradtrace import Trace
from gradtrace.errors import BadArgument
from gradtrace.queries.summary import Summary
from gradtrace.report.history import History


def _of(model: nn.Module, *shape: int) -> tuple[Trace, Summary]:
    trace = traced(model, torch.ones(shape, **F64))
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    return trace, summary


def _said(summary: Summary, kind: str) -> list[str]:
    return [f.text for f in summary.findings if f.kind == kind]


def test_what_is_bypassed():
    _, summary = _of(Stack(0.1, 0.1, 0.1), 1, 3)
    assert "- 100% go around inner" in str(summary)
    assert _said(summary, "around") == [
        "100% of the paths from first go around inner → output at the 3 additions of layer.*."
    ]
    assert not _said(summary, "nothing")


def test_what_is_taken():
    _, summary = _of(Stack(5.0, 5.0), 1, 3)
    assert _said(summary, "through") == [
        "100% of the paths from first take inner → output at the 2 additions of layer.*, hardly any around."
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
    assert _said(summary, "idle") == ["1 of the 2 heads in attn carry next to nothing: head 1."]


def test_what_is_dead():
    torch.manual_seed(0)
    model = Attention()
    with torch.no_grad():
        model.attn.out_proj.weight.zero_()
    trace = traced(model, torch.ones(2, 3, 4, **F64))
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    (text,) = _said(summary, "dead")
    assert text.startswith("No path leads from 4 of the 6 parameters to the loss (dead): embed.weight")
    assert summary.early.of == ("attn.out_proj.weight", "attn.out_proj.bias")  # the first from which a path leads


def test_nothing_remarkable_is_said_to_be_so():
    scale = torch.tensor([0.5, 2.0, 0.5, 2.0], **F64)
    tape, loss = recorded(lambda x: (x + x * scale).sum(), {"x": drawn(4)})
    summary = tape.trace(loss).summary()
    assert [f.kind for f in summary.findings] == ["divided", "nothing"]
    assert summary.findings[0].text == "The paths from x divide at the addition: around 50% and mul 50%."
    assert "Nothing stands out" in str(summary)


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
    assert re.match(r"loss .*; greedy paths from first, 12 of them:", lines[0])


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
