"""What moved from one trace to another: the differences of the traces' own answers, matched by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas
import pytest
import torch
from torch import nn

import gradtrace
from gradtrace import Trace
from gradtrace.cli import main
from gradtrace.errors import BadArgument, BadTrace, UnknownName
from gradtrace.monitor import Monitor
from gradtrace.report.changes import MEASURES
from gradtrace.report.comparison import Comparison
from gradtrace.report.document import BadResults

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 8))
        self.skip = nn.Linear(6, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.encoder(x) + self.skip(x))

def build(act=nn.ReLU()):
    torch.manual_seed(0)
    return Net(act), [torch.randn(5, 6)], lambda model, x: model(x).square().mean()

def smooth():
    return build(nn.Tanh())
"""
space: dict = {}
exec(MODEL, space)


def trace(build: str = "build", change=lambda model: None) -> Trace:
    model, (x,), loss = space[build]()
    change(model)
    with gradtrace.record(model, examples=x) as tape:
        out = loss(model, x)
    return tape.trace(out)


def shrink(model: nn.Module) -> None:
    with torch.no_grad():
        model.encoder[2].weight *= 0.01


@pytest.fixture(scope="module")
def moved() -> tuple[Trace, Trace, Comparison]:
    a, b = trace(), trace(change=shrink)
    return a, b, gradtrace.compare(a, b)


def test_every_change_is_the_difference_of_two_answers(moved):
    a, b, found = moved
    parts, seen = ["encoder", "skip", "head"], set()
    for kind in ("best", "greedy"):
        for of in ("*", "encoder.*", "skip.*", "head.*"):
            tables = [{r.component: r for r in t.influence(parts, of, kind=kind).rows} for t in (a, b)]
            group = "all parameters" if of == "*" else of[:-2]
            for c in found.changes:
                if (c.kind, c.of) == (kind, group) and c.measure in ("share", "weighted_share"):
                    assert (c.before, c.after) == tuple(getattr(t[c.name], c.measure) for t in tables)
                    seen.add((c.measure, kind, of, c.name))
                if (c.kind, c.of, c.measure) == (kind, group, "dead_share"):
                    assert (c.before, c.after) == tuple(t["skip"].dead_share for t in tables)
    assert len(seen) == 2 * 2 * 4 * 3
    strengths = {c.name: (c.before, c.after) for c in found.of("log2_strength")}
    assert set(strengths) == set(a.tape.leaves)
    whole = [t.forest(per_example=True).log2 for t in (a, b)]  # the strongest of all examples
    for name, leaf in a.tape.leaves.items():
        other = b.tape.leaves[name]
        expected = float(whole[0][leaf.id].max()), float(whole[1][other.id].max())
        assert strengths[name] == pytest.approx(expected, abs=1e-6)


def test_the_largest_change_comes_first(moved):
    *_, found = moved
    for measure in MEASURES:
        sizes = [abs(c.change) for c in found.of(measure)]
        assert sizes == sorted(sizes, reverse=True)
    # the encoder's own paths go through the weight that shrank: 2^-6.64 weaker
    largest = found.of("log2_strength")[0]
    assert largest.name.startswith("encoder.0")
    assert largest.change == pytest.approx(math.log2(0.01), abs=0.5)


def test_a_trace_and_itself(tmp_path):
    a = trace()
    file = a.save(tmp_path / "a.gradtrace")
    found = gradtrace.compare(a, file)
    assert found.changes
    assert not any(c.change for c in found.changes)
    assert found.unmatched == {}
    assert "Nothing moved." in str(found)


def test_saved_traces_compare_as_live_ones(moved, tmp_path):
    a, b, live = moved
    files = [t.save(tmp_path / f"{n}.gradtrace") for n, t in enumerate((a, b))]
    assert gradtrace.compare(*files, names=("before", "after")) == live
    best = [t.save(tmp_path / f"best{n}", kinds="best", per_example=False) for n, t in enumerate((a, b))]
    assert {c.kind for c in gradtrace.compare(*best).changes} == {"best"}


def test_two_variants_list_what_one_alone_has(tmp_path):
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.gate = nn.Linear(6, 8), nn.Linear(6, 1)

        def forward(self, x):
            return (self.encoder(x) * self.gate(x)).sum(-1)

    model, x = Wide(), torch.randn(5, 6)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().mean()
    found = gradtrace.compare(trace(), tape.trace(loss), names=("plain", "gated"))
    first, second = found.unmatched["parameters"]
    assert {"skip.weight", "encoder.0.weight"} <= set(first)
    assert set(second) == {"gate.weight", "gate.bias", "encoder.weight", "encoder.bias"}
    assert "gate" in found.unmatched["components"][1]
    assert {c.name for c in found.of("share")} == {"encoder"}
    assert "gate only in gated" in " ".join(found.sentences())


def test_another_shape_is_said():
    a, b = (run_linear(n) for n in (3, 4))
    found = gradtrace.compare(a, b)
    assert found.reshaped == ("0.weight", "0.bias", "1.weight")
    assert "Of another shape: 0.weight, 0.bias and 1.weight." in found.sentences()


def run_linear(width: int) -> Trace:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1)), torch.randn(4, 2)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).sum()
    return tape.trace(loss)


def test_a_path_that_died_is_the_largest_change_of_all():
    def cut(model: nn.Module) -> None:
        with torch.no_grad():
            model.skip.weight *= 1.5
            model.encoder[2].weight.zero_()

    found = gradtrace.compare(trace(), trace(change=cut))
    (first, second, third, *_) = found.of("log2_strength")
    assert {first.name, second.name} == {"encoder.0.weight", "encoder.0.bias"}
    assert first.written()[1:] == ("no path", "died")
    assert math.isfinite(third.change)
    assert gradtrace.compare(trace(change=cut), trace()).of("log2_strength")[0].written()[2] == "came up"


def test_steps_of_a_history(tmp_path):
    model, (x,), loss = space["build"]()
    monitor = Monitor(model, every=1, of="encoder*", components=["encoder", "head"], folder=tmp_path)
    for step in range(3):
        with monitor.step(examples=x):
            out = loss(model, x)
        out.backward()
        with torch.no_grad():
            model.encoder[2].weight *= 0.1 if step == 0 else 1
    file = tmp_path / "history.jsonl"
    found = gradtrace.compare(f"{file}@0", file)
    assert (found.before.step, found.after.step) == (0, 2)
    assert found.before.name == "history.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    first, *_, last = [r["influence"] for r in rows if r["kind"] == "trace"]
    for c in found.of("share"):
        before, after = (next(r for r in rs if (r["kind"], r["component"]) == (c.kind, c.name)) for rs in (first, last))
        assert (c.before, c.after) == (before["share"], after["share"])
    assert gradtrace.compare(f"{file}@0", file, names=("a", "b")).before.name == "a"
    # a trace is asked what the history says
    mixed = gradtrace.compare(f"{file}@1", trace(change=shrink))
    assert {(c.of, c.name) for c in mixed.of("share")} == {("encoder*", "encoder"), ("encoder*", "head")}
    with pytest.raises(BadArgument, match="no trace of step 7; there are 0, 1, 2"):
        gradtrace.compare(f"{file}@7", file)


def test_a_table_fits_80_columns_and_a_data_frame_has_all(moved):
    *_, found = moved
    assert max(map(len, str(found).splitlines())) <= 80
    frame = found.to_dataframe()
    assert len(frame) == len(found.changes)
    pandas.testing.assert_series_equal(frame.change, frame.after - frame.before, check_names=False)


def test_what_cannot_be_compared_says_so(moved, tmp_path):
    a, *_ = moved
    file = a.save(tmp_path / "a.gradtrace")
    (tmp_path / "bad.json").write_text("{}")
    for what, error in (
        (3, BadArgument),
        (tmp_path / "none", BadTrace),
        (tmp_path / "bad.json", BadResults),
        (f"{file}@3", BadArgument),
    ):
        with pytest.raises(error):
            gradtrace.compare(a, what)
    with pytest.raises(BadArgument, match="names must be two"):
        gradtrace.compare(a, a, names="ab")
    with pytest.raises(UnknownName):
        a.influence("nowhere")
    assert gradtrace.compare(a, a, components=["nowhere", "head"]).of("share")[0].name == "head"


def test_the_page_runs_and_fetches_nothing(moved, hostile_names, browser, tmp_path):
    torch.manual_seed(0)
    model, x = nn.ModuleDict({name: nn.Linear(4, 4) for name in hostile_names}), torch.randn(3, 4)
    traces = []
    for factor in (1.0, 0.1):
        with gradtrace.record(model, examples=x) as tape:
            y = x
            for layer in model.values():
                y = y + layer(y).tanh() * factor
            loss = y.square().mean()
        traces.append(tape.trace(loss))
    for number, found in enumerate((moved[2], gradtrace.compare(*traces, names=hostile_names[:2]))):
        page = found.report(tmp_path / f"{number}.html")
        assert not re.search(r"<(script|img)|<svg (?!width)", page.read_text())
        opened, said = browser.new_page(viewport={"width": 400, "height": 800}), []
        opened.on("console", lambda message, said=said: said.append(message.text))
        opened.on("request", lambda request, said=said: said.append(request.url))
        opened.goto(page.as_uri())
        assert said == [page.as_uri()]
        assert opened.evaluate("document.documentElement.scrollWidth") <= 400
        assert opened.locator("section").count() >= 3
        assert str(found.of("share")[0].name) in opened.locator("table").first.inner_text()
        opened.close()


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("build", "smooth"):
        assert main(["trace", f"model.py:{name}", "--out", name, "--save", f"{name}.gradtrace"]) == 0
    assert main(["report", "build.gradtrace", "--out", "saved.html"]) == 0
    assert '"kind":"trace"' in Path("saved.html").read_text()
    assert main(["show", "build.gradtrace"]) == 0
    capsys.readouterr()
    for pair in (
        ("build.gradtrace", "smooth.gradtrace"),
        ("build/results.json", "smooth/results.json"),
        ("build/results.json", "smooth.gradtrace"),
    ):
        assert main(["compare", *pair, "--out", "page.html"]) == 0
        out = capsys.readouterr().out
        assert f"{Path(pair[0]).name}, loss" in out
        assert "Paths that cross a component" in out
        assert max(map(len, out.splitlines())) <= 80
        assert Path("page.html").exists()
    assert main(["trace", "model.py:build", "--out", "none", "--save", "nowhere/a.gradtrace"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert not Path("none").exists()
    results = json.loads(Path("build/results.json").read_text())
    del results["snapshot"]["influence"][0]["share"]
    Path("damaged.json").write_text(json.dumps(results))
    for wrong in (
        ["build.gradtrace", "none"],
        ["damaged.json", "build/results.json"],
        ["build.gradtrace", "model.py"],
        ["a.jsonl", "build.gradtrace"],
    ):
        assert main(["compare", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["compare", "build.gradtrace", "build.gradtrace", "--most", "0"]) == 2


def test_steps_of_a_competition(competition):
    folder, results = competition
    first, *_, last = results["runs"][0]["traces"]
    file = folder / "results.json"
    found = gradtrace.compare(f"{file}@{first['step']}", file)
    assert (found.before.step, found.after.step) == (first["step"], last["step"])
    shares = {(c.kind, c.name): (c.before, c.after) for c in found.of("share")}
    for row, later in zip(first["influence"], last["influence"], strict=True):
        assert shares[row["kind"], row["component"]] == (row["share"], later["share"])
