"""From results.json to what is shown: headlines, terminal tables, and the errors of someone with another file."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

import gradtrace
from gradtrace.cli import main
from gradtrace.report import headline
from gradtrace.report.document import BadResults, of_results
from gradtrace.report.show import show, sparkline
from gradtrace.report.words import percent


def agreement(verdict: str, influence: str, damage: str, spearman: float | None) -> dict:
    row = {"verdict": verdict, "influence": influence, "damage": damage, "spearman": spearman, "n": 3}
    return {"rows": [row], "sentence": "cannot be compared"}


def results(verdict="disagree", influence="a > b > c", damage="b > a > c", spearman: float | None = 0.5, complete=True):
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    rows = [{"kind": "best", "component": c, "share": s, "traces": 9} for c, s in shares.items()]
    return {"influence": rows, "complete": complete, "agreement": agreement(verdict, influence, damage, spearman)}


def test_headlines_say_what_the_data_say():
    first, second, third = headline.of_competition(results())
    assert first == (
        "a carries most: 60.0% of the strongest paths from the shared embedding cross it "
        "(b 30.0%, c 10.0%; average of 9 traces during training)."
    )
    assert "did not agree" in second
    assert "what hurt most to leave out was b, not a" in second
    assert "0.50 with n = 3 components and one seed, which proves little" in third
    assert "one time in 6" in third


def test_headlines_of_other_ends():
    assert "Ablation agreed" in headline.of_competition(results("agree", damage="a > b > c", spearman=1.0))[1]
    assert "because of ties" in headline.of_competition(results("undecided", damage="a = b = c", spearman=None))[1]
    assert headline.of_competition(results("nothing to compare"))[1] == "cannot be compared"
    assert "not finished" in headline.of_competition(results(complete=False))[1]
    nothing = results()
    nothing["influence"] = []
    assert headline.of_competition(nothing) == ["Nothing has been traced yet, or no path reached the embedding."]


def row(component: str, share: float, inside=False) -> dict:
    return {"of": "g", "kind": "best", "component": component, "share": share, "dead_share": 0.25, "inside": inside}


def test_headlines_of_a_trace():
    said = headline.of_trace([row("out", 1.0), row("skip", 0.7), row("mlp", 0.005)], "g")
    assert said == [
        "Practically all strongest paths from g cross out.",
        "Of the others, skip carries most: 70.0% of the strongest paths.",
        "Nearly all pass mlp by.",
        "25.0% of the (example, parameter scalar) pairs have no path at all (dead).",
    ]
    assert "No path leads" in headline.of_trace([row("out", float("nan"))], "g")[0]


def test_a_headline_does_not_take_what_was_not_seen_for_what_is_not_there():
    unseen = row("enc", float("nan")) | {"seen": False}
    assert headline.of_trace([unseen], "g") == ["Nothing can be said of enc: none of its calls was seen."]
    both = headline.of_trace([row("out", 1.0), unseen, unseen | {"component": "dec"}], "g")
    assert both[0] == "Practically all strongest paths from g cross out."
    assert both[-1] == "Nothing can be said of enc and dec: none of their calls was seen."
    assert "No component was asked about" in headline.of_trace([], "g")[0]
    assert "No path leads" in headline.of_trace([row("out", float("nan")) | {"dead_share": 1.0}, unseen], "g")[0]


def test_the_report_of_a_model_without_submodules(tmp_path):
    model = torch.nn.Linear(3, 1)
    with gradtrace.record(model) as tape:
        loss = model(torch.ones(4, 3)).square().mean()
    trace = tape.trace(loss)
    page = trace.report(tmp_path / "plain.html").read_text("utf-8")
    assert "No path leads" not in page
    assert "all strongest paths from all parameters cross aten::addmm, aten::pow and aten::mean" in page
    assert set(trace.to_dataframe()["component"]) == {"aten::addmm", "aten::pow", "aten::mean"}


def printed(document) -> str:
    out = io.StringIO()
    show(document, Console(file=out, width=200))
    return out.getvalue()


def test_the_terminal_shows_the_same_figures(competition):
    _, found = competition
    document = of_results(found)
    text = printed(document)
    assert all(sentence in text for sentence in document["headline"])
    for r in document["snapshots"][-1]["influence"]:
        assert percent(r["share"]) in text
        assert percent(r["weighted_share"]) in text
    assert f"{document['snapshots'][-1]['paths']['best']['starts']['log2'][0]:.2f}" in text
    assert found["agreement"]["sentence"] in text
    assert any(bar in text for bar in "▂▃▄▅▆▇█")


def test_sparklines():
    assert sparkline([0, 1, None, 0.5], 0, 1) == "▁█ ▅"
    assert sparkline([2, 2]) == "▁▁"
    assert sparkline([None]) == " "


def test_results_of_an_older_version_say_so(competition):
    _, found = competition
    with pytest.raises(BadResults, match="older version"):
        of_results({k: v for k, v in found.items() if k != "graph"})
    with pytest.raises(BadResults, match="not the results"):
        of_results({"kind": "other"})


def test_report_and_show_on_the_command_line(competition, tmp_path, capsys):
    folder, _ = competition
    page = tmp_path / "page.html"
    assert main(["report", str(folder / "results.json"), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"Report: {page}")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["show", str(folder / "results.json")]) == 0
    assert "carries most" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", None])
def test_files_that_are_no_results(content, tmp_path, capsys):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    for command in ("report", "show"):
        assert main([command, str(path)]) == 2
        assert capsys.readouterr().err.startswith("gradtrace: ")


def test_a_competitions_graph_holds_source_lines_of_the_experiment_only(competition):
    _, found = competition
    sources = {s.rsplit(":", 1)[0] for s in found["graph"]["calls"]["source"]}
    assert sources == {f"gradtrace/experiments/{name}.py" for name in ("competition", "tasks")}
    assert found["certificate"]["leaves"] == len(found["graph"]["parameters"]["name"])


def test_a_users_own_model_gets_a_report(tmp_path, capsys):
    (tmp_path / "train.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))\n"
        "    return model, [torch.randn(6, 4)], lambda m, x: m(x).square().mean()\n"
    )
    assert main(["trace", f"{tmp_path / 'train.py'}:build", "--check", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.strip().endswith(f"Report: {tmp_path / 'out' / 'report.html'}")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["certificate"]["leaves"] == 4
    text = printed(of_results(found))
    assert "0 → 1 → 2" in text
