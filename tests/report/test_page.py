"""The page around the data: inert whatever the data say, and small."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re

import pytest
import torch

from gradtrace import record
from gradtrace.report.document import of_trace
from gradtrace.report.page import bundle, encode, frame, render
from gradtrace.report.snapshot import Question

DOCUMENT = {
    "title": "<b>",
    "headline": ["</noscript><script>alert(1)</script>"],
    "names": ["</script>", "\u2028", "é", "&amp;"],
}


def test_data_are_escaped_and_come_back_as_they_were():
    text = encode(DOCUMENT)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == DOCUMENT


def test_the_policy_allows_this_script_and_style_alone():
    page = render(DOCUMENT)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "<b>" not in page
    assert "alert(1)</script>" not in page


def test_the_bundle_is_small_and_fetches_nothing():
    script, style = bundle("report.js"), bundle("report.css")
    assert len(script.encode()) + len(style.encode()) <= 400_000
    assert "</script" not in script.lower()
    assert "<!--" not in script
    for word in ("fetch(", "XMLHttpRequest", "import(", "innerHTML", "insertAdjacentHTML", "document.write"):
        assert word not in script.replace("dangerouslySetInnerHTML", ""), word
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_before_its_data_stays_below_400_kilobytes():
    page = render(DOCUMENT)
    assert len(page.encode()) - len(encode(DOCUMENT)) <= 400_000


def test_a_frame_for_notebooks_quotes_the_page():
    html = frame('<p class="x">')
    assert 'srcdoc="&lt;p class=&quot;x&quot;&gt;"' in html
    assert "allow-same-origin" not in html


@pytest.fixture
def trace():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with record(model) as tape:
        loss = model(torch.randn(5, 3)).square().mean()
    return tape.trace(loss)


def test_a_report_without_examples(trace, tmp_path):
    path = trace.report(tmp_path / "r.html", groups={"first": "0.*"}, components=["0", "2"], kinds=("best",), paths=3)
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])
    assert [f["of"] for f in data["snapshots"][0]["flows"]] == ["first"]
    assert {r["component"] for r in data["snapshots"][0]["influence"]} == {"0", "2"}


def test_a_notebook_gets_a_table_of_where_the_strongest_paths_start(trace):
    shown = trace._repr_html_()
    top, weight = trace.strongest(1)[0], f"2^{trace.strongest(1)[0].log2_weight:.1f}"
    assert html.escape(f"{top.start}{list(top.index)}") in shown
    assert weight in shown
    assert shown.count("<tr>") == 1 + 1 + 4  # all parameters, and each
    assert "<script" not in shown


def test_a_notebook_says_which_parameters_have_no_path():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    with record(model) as tape:
        loss = model(torch.rand(3, 2)).sum()
    rows = tape.trace(loss)._repr_html_().split("<tr>")
    dead = {row.split("<")[1].partition(">")[2]: row for row in rows[2:]}
    assert "none" in dead["0.weight"]
    assert all("100.0%" in dead[name] for name in ("0.weight", "0.bias", "2.weight"))
    assert ">0.0%<" in dead["2.bias"]
    assert "88.9%" in dead["all parameters"]


def test_a_notebook_asks_of_the_batch_as_a_whole_and_a_report_may():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
    with record(model, examples=x) as tape:
        loss = model(x).square().mean()
    trace = tape.trace(loss)
    assert "<table" in trace._repr_html_()
    document = of_trace(trace, Question(per_example=False))
    assert {row["examples"] for row in document["snapshots"][0]["influence"]} == {1}
    assert document["snapshots"][0]["flows"][0]["total"] == 16
    assert not any(apart for _, apart in trace._forests)
