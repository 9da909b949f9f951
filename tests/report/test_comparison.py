"""What moved from one trace to another: the differences of the traces' own answers, matched by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from torch import nn

import gradtrace
from gradtrace import Trace
from gradtrace.cli import main
from gradtrace.errors import BadArgument, BadTrace, UnknownName
from gradtrace.monitor import Monitor
from gradtrace.queries.forest import FIRST
from gradtrace.report.changes import MEASURES
from gradtrace.report.comparison import Comparison
from gradtrace.report.document import BadResults
from gradtrace.report.fold import links_at

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


def points(difference: float) -> str:
    text = f"{100 * abs(difference):.1f}".removesuffix(".0")
    return "0" if text == "0" else ("−" if difference < 0 else "+") + text


class Residual(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.strength = strength

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.strength * self.inner(h))


@pytest.fixture(scope="module")
def both() -> Comparison:
    """A block that hardly any strongest path takes, and one that many take."""
    traces = []
    for strength in (1.0, 4.0):
        torch.manual_seed(0)
        model, x = Residual(strength), torch.randn(5, 6)
        with gradtrace.record(model, examples=x) as tape:
            loss = model(x).square().mean()
        traces.append(tape.trace(loss))
    return gradtrace.compare(*traces, names=("weak", "strong"))


@pytest.fixture(scope="module")
def both_report(both, tmp_path_factory) -> Path:
    return both.report(tmp_path_factory.mktemp("both") / "report.html")


def test_the_page_shows_the_same_views_with_differences(both_report, open_report):
    report = open_report(both_report)
    page, (first, second) = report.page, report.data["snapshots"]
    shares = [{(r["of"], r["kind"], r["component"]): r["share"] for r in s["influence"]} for s in (first, second)]
    found = page.locator("#influence .cell").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
    assert found
    for label in found:
        (of, component, kind), said = label.split(": ")[0].split(", "), label.split(": ")[1]
        ends = [side[of, kind, component] for side in shares]
        assert said == ("–" if None in ends else points(ends[1] - ends[0]))
    joins = [
        {
            (g["pattern"], label, branch): values[1]
            for t in s["joins"]
            if (t["table"], t["kind"]) == ("early", FIRST)
            for g in t["grids"]
            for j, label in zip(g["joins"], g["labels"], strict=True)
            for branch, values in j["branches"].items()
        }
        for s in (first, second)
    ]
    cells = page.locator("#joins td.share").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
    wanted = {(label, b): points(share - joins[0][p, label, b]) for (p, label, b), share in joins[1].items()}
    assert sorted(cells) == sorted(f"{label}, {branch}: {said}" for (label, branch), said in wanted.items())
    assert any(said != "0" for said in wanted.values())
    ribbons = page.locator("#flow .ribbons path").evaluate_all(
        "all => all.map(p => [p.dataset.source, p.dataset.target, Number(p.dataset.difference)])"
    )
    opened = [int(n) for n in page.locator("#flow svg.flow").get_attribute("data-open").split()]
    runs = page.locator("#flow .part[data-members]").evaluate_all(
        "all => all.map(p => [p.dataset.id, p.dataset.members.split(' ')])"
    )
    home = {member: run for run, members in runs for member in members}
    of = page.locator("#group").input_value()
    moved_by: dict[tuple[str, ...], float] = {}
    for snapshot, sign in ((first, -1), (second, 1)):
        flow = next(f for f in snapshot["flows"] if (f["of"], f["kind"]) == (of, FIRST))
        for ends, (paths, _) in links_at(report.data["graph"], flow, opened).items():
            key = tuple(home.get(end, end) for end in ends)
            moved_by[key] = moved_by.get(key, 0) + sign * paths / flow["total"]
    for source, target, difference in ribbons:
        assert difference == pytest.approx(moved_by.get((source, target), 0.0))
    assert page.locator("#flow .ribbons .more").count()
    assert page.locator("#flow .ribbons .fewer").count()
    page.select_option("#against", "")
    assert "less=" in page.url
    assert page.locator(".difference", has_text="In points").count() == 0
    page.select_option("#step", "0")
    assert page.locator("#influence .cell").first.get_attribute("aria-label").endswith("%")


def test_the_page_lists_what_moved(both_report, both, open_report):
    report = open_report(both_report)
    there = [measure for measure in MEASURES if any(c.moved for c in both.of(measure))]
    assert len(there) >= 3
    for table, measure in zip(report.page.locator("#changes table").all(), there, strict=True):
        rows = table.locator("tbody tr").evaluate_all("all => all.map(r => [...r.cells].map(c => c.textContent))")
        changes = [c for c in both.of(measure) if c.moved]
        assert [row[0] for row in rows] == [c.name for c in changes]
        assert [tuple(row[-4:-1]) for row in rows] == [c.written() for c in changes]
    assert report.page.locator(".headline p").all_text_contents() == both.sentences()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_the_page(both_report, open_report, scheme):
    report = open_report(both_report, color_scheme=scheme, bypass_csp=True)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
    found = Axe().run(report.page, options=rules).response["violations"]
    assert not found, [(v["id"], v["nodes"][0]["target"], v["nodes"][0]["failureSummary"]) for v in found]
    report.page.set_viewport_size({"width": 400, "height": 800})
    assert report.page.evaluate("document.documentElement.scrollWidth") <= 400


def test_two_programs_have_the_flow_of_the_second(open_report, tmp_path):
    found = gradtrace.compare(trace(), run_linear(3), names=("plain", "short"))
    report = open_report(found.report(tmp_path / "r.html"))
    assert report.page.locator("#flow .part").count() > 3
    report.page.select_option("#step", "0")
    assert "ran other operators" in report.page.locator("#flow .none").text_content()
    assert "skip.weight" in report.page.locator("#changes").text_content()  # it has no match


def test_hostile_names_are_text_in_the_page_of_two(hostile_names, open_report, tmp_path):
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
    found = gradtrace.compare(*traces, names=hostile_names[:2])
    report = open_report(found.report(tmp_path / "r.html"))
    assert report.page.locator("#app img, #app script, #app iframe").count() == 0
    assert found.of("share")[0].name in report.page.locator("#changes table").first.inner_text()


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
