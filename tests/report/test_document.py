"""From results.json to what is shown: headlines, terminal tables, and the errors of someone with another file."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

import gradtrace
from gradtrace.cli import main
from gradtrace.queries.forest import FIRST
from gradtrace.report import headline
from gradtrace.report.document import BadResults, of_results
from gradtrace.report.show import show, sparkline
from gradtrace.report.words import percent


def agreement(verdict: str, influence: str, damage: str, spearman: float | None) -> dict:
    row = {"verdict": verdict, "influence": influence, "damage": damage, "spearman": spearman, "n": 3}
    return {"rows": [row], "sentence": "cannot be compared"}


def results(verdict="disagree", influence="a > b > c", damage="b > a > c", spearman: float | None = 0.5, complete=True):
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    rows = [{"kind": FIRST, "component": c, "share": s, "traces": 9} for c, s in shares.items()]
    return {"influence": rows, "complete": complete, "agreement": agreement(verdict, influence, damage, spearman)}


def test_headlines_say_what_the_data_say():
    first, second, third = headline.of_competition(results())
    assert first == (
        "a carries most: 60.0% of the greedy paths from the shared embedding cross it "
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


def taken(*texts: str, influence: list[dict] | None = None) -> dict:
    return {"step": 5, "findings": [{"text": text} for text in texts], "influence": influence or []}


def row(component: str, share: float, *, seen: bool = True) -> dict:
    return {"of": "g", "kind": "best", "component": component, "share": share, "seen": seen}


def test_headlines_of_a_trace():
    assert headline.of_trace(taken("This stands out.", "And this.")) == ["This stands out.", "And this."]
    (old,) = headline.of_trace({"influence": []})
    assert "older version" in old


def test_a_headline_does_not_take_what_was_not_seen_for_what_is_not_there():
    unseen = row("enc", float("nan"), seen=False)
    said = headline.of_trace(taken("This stands out.", influence=[row("out", 1.0), unseen]))
    assert said == ["This stands out.", "Nothing can be said of enc: none of its calls was seen."]
    both = headline.of_trace(taken(), [unseen, unseen, unseen | {"component": "dec"}])
    assert both == ["Nothing can be said of enc and dec: none of their calls was seen."]


def test_headlines_of_a_history():
    first, last = (taken("This.", influence=[row("out", share)]) for share in (0.5, 0.75))
    assert headline.of_history([first]) == ["At step 5, the only one traced so far: This."]
    assert headline.of_history([first, last]) == [
        "At step 5, the last of 2 traces: This.",
        "Since step 5 out moved most: its share went from 50.0% to 75.0%.",
    ]


def test_the_report_of_a_model_without_submodules(tmp_path):
    model = torch.nn.Linear(3, 1)
    with gradtrace.record(model) as tape:
        loss = model(torch.ones(4, 3)).square().mean()
    trace = tape.trace(loss)
    page = trace.report(tmp_path / "plain.html").read_text("utf-8")
    assert "No path leads" not in page
    assert "The paths from all 2 parameters (one for each scalar) have no choice" in page
    assert set(trace.to_dataframe()["component"]) == {"aten::addmm", "aten::pow", "aten::mean"}


def printed(document) -> str:
    out = io.StringIO()
    show(document, Console(file=out, width=200), whole=True)
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
    assert found["agreement"]["sentence"] in " ".join(text.split())
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
