"""What is chosen holds in every view: how paths count, one example, a group, a search; and what is dead says so."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import in_both
from torch import Tensor, nn

from gradtrace import record
from gradtrace.queries.forest import FIRST
from gradtrace.report import snapshot as snapshots
from gradtrace.report.fold import links_at
from gradtrace.report.words import percent


class Stuck(nn.Module):
    """Begins with a layer whose units are all off, and has a gate that is nearly shut, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.off, self.squeeze = nn.Linear(4, 5), nn.Linear(5, 6)
        self.value, self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.constant_(self.off.bias, -50.0)
        nn.init.constant_(self.gate.bias, -6.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.squeeze(torch.relu(self.off(x))))
        return self.head(y + torch.sigmoid(self.gate(y)) * torch.tanh(self.value(y)))


@pytest.fixture(scope="session")
def stuck():
    torch.manual_seed(3)
    model, x = Stuck(), torch.randn(4, 4)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    return tape.trace(loss)


@pytest.fixture(scope="session")
def stuck_report(stuck, tmp_path_factory):
    return stuck.report(tmp_path_factory.mktemp("stuck") / "report.html", title="stuck", kinds="greedy", signed=True)


def tip_of(report, selector: str) -> str:
    report.page.locator(selector).first.focus()
    return report.page.locator(".tip").text_content()


def flow_number(report, of: str) -> int:
    return next(n for n, f in enumerate(report.data["snapshots"][-1]["flows"]) if (f["of"], f["kind"]) == (of, FIRST))


def drawn(report, field: str) -> dict[tuple[str, str], float]:
    rows = report.page.locator("#flow .ribbons path:not(.idle)").evaluate_all(
        "all => all.map(p => [p.dataset.source, p.dataset.target, Number(p.dataset.paths)])"
    )
    return {(source, target): paths for source, target, paths in rows}


@in_both
def test_one_control_says_how_paths_count(stuck_report, open_report):
    report = open_report(stuck_report)
    page, taken = report.page, report.data["snapshots"][-1]
    assert page.locator("#measure, #joins-measure, #width").count() == 0  # none that could say something else
    assert page.locator("label", has_text="Count").count() == 1
    for field, unit in (("weighted_share", "the paths’ weight"), ("share", "paths")):
        page.select_option("#count", field)
        for view in ("joins", "influence"):
            assert page.locator(f"#{view} .difference").text_content().startswith(f"Share of {unit}: 0%")
        for row in taken["influence"]:
            cell = page.locator(f'#influence .cell[data-of="{row["of"]}"][data-component="{row["component"]}"]')
            assert cell.get_attribute("aria-label").endswith(f": {percent(row[field])}")
        page.select_option("#group", "all parameters")
        flow = taken["flows"][flow_number(report, "all parameters")]
        amount = ("paths", "weights")[field == "weighted_share"]
        whole = flow["total"] if amount == "paths" else flow["weight"]
        into = Counter()
        for (_, target), (paths, weight) in links_at(report.data["graph"], flow, opened(report)).items():
            into[target] += paths if amount == "paths" else weight
        for part in page.locator("#flow .part.modules:not(.run)").all():
            said = percent(into[part.get_attribute("data-id")] / whole)
            assert part.locator(".share").text_content() == said
            assert f"{said} of {unit}" in part.get_attribute("aria-label")
        widths = page.locator("#flow .part:not(.run)").first
        widths.focus()
        assert page.locator(".tip div").first.text_content().endswith("weight" if amount == "weights" else "%")
    page.select_option("#count", "along")
    early = next(t for t in taken["joins"] if t["table"] == "early")
    shares = [b[3] for g in early["grids"] for j in g["joins"] for b in j["branches"].values()]
    cells = page.locator("#joins td.share").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
    assert sorted(c.split(": ")[-1] for c in cells) == sorted(percent(share) for share in shares)
    page.select_option("#joins-of", "all")
    assert "Parts of the gradient are known of the earliest parameters" in page.locator("#joins").inner_text()


def opened(report) -> list[int]:
    return [int(n) for n in report.page.locator("#flow svg.flow").get_attribute("data-open").split()]


def test_parts_of_the_gradient_are_those_of_the_trace(stuck):
    taken = snapshots.snapshot(stuck, snapshots.Question(kinds="greedy", signed=True))
    (early,) = [t for t in taken["joins"] if t["table"] == "early"]
    rows = {
        (j.call, b.name): b.along for j in stuck.joins(early["of"], kind="greedy", signed=True).rows for b in j.branches
    }
    found = {
        (j["call"], name): branch[3]
        for g in early["grids"]
        for j in g["joins"]
        for name, branch in j["branches"].items()
    }
    assert found
    assert found == pytest.approx({key: rows[key] for key in found}, rel=1e-3)
    unasked = snapshots.snapshot(stuck, snapshots.Question(kinds="greedy"))
    assert {
        len(b) for t in unasked["joins"] for g in t["grids"] for j in g["joins"] for b in j["branches"].values()
    } == {3}


@in_both
def test_every_view_shows_the_chosen_example(stuck_report, open_report):
    report = open_report(stuck_report)
    page, taken = report.page, report.data["snapshots"][-1]
    page.select_option("#group", "all parameters")
    number = flow_number(report, "all parameters")
    for example in (0, 2):
        page.select_option("#example", str(example))
        own = taken["flows"][number] | taken["examples"][example]["flows"][number]
        for view in ("joins", "flow", "influence"):
            assert page.locator(f"#{view} .whose").text_content() == f"Of example {example} alone."
        assert (
            page.locator("#flow .totals")
            .text_content()
            .startswith(f"{own['total']:,.0f} greedy paths of example {example} ")
        )
        links = links_at(report.data["graph"], own, opened(report))
        runs = page.locator("#flow .part[data-members]").evaluate_all(
            "all => all.flatMap(p => p.dataset.members.split(' '))"
        )
        for ends, paths in drawn(report, "paths").items():
            if not set(ends) & set(runs) and not any(end[0] == "r" for end in ends):
                assert paths == links[ends][0]
        into_loss = [paths for (_, target), paths in drawn(report, "paths").items() if target == "loss"]
        assert into_loss == [own["total"]]
        of = page.locator("#joins .of").text_content()
        assert of.endswith(f" of example {example}")
        column = page.locator("#joins tbody td:nth-child(2)").all_text_contents()
        assert column
        assert all(text.endswith("%") for text in column)


def test_a_flow_of_all_examples_says_so(stuck, open_report, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_OWN", 0)
    report = open_report(stuck.report(tmp_path / "r.html", kinds="greedy", semirings=["entropy"]))
    assert report.page.locator(".whose:visible").count() == 0
    report.page.select_option("#example", "1")
    assert report.page.locator("#flow .whose").text_content().startswith("Of all examples")
    assert " of all examples reach the loss" in report.page.locator("#flow .totals").text_content()
    assert report.page.locator("#joins .of").text_content().endswith(" of example 1")
    assert report.page.locator("#entropy .whose").text_content() == "Of all examples."


def test_a_closed_parts_lanes_fill_what_comes_to_them(gpt2_report, open_report):
    report = open_report(gpt2_report)
    page, taken = report.page, report.data["snapshots"][-1]
    number = flow_number(report, "transformer.wte.weight")
    total = taken["flows"][number]["total"]
    heads = {
        label: join
        for t in taken["joins"]
        if (t["table"], t["kind"]) == ("early", FIRST)
        for g in t["grids"]
        if g["operator"] == "heads"
        for label, join in zip(g["labels"], g["joins"], strict=True)
    }
    page.locator("#layer").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    seen = 0
    for part in page.locator("#flow .part.modules:has(.lane)").all():
        box = part.evaluate("p => [...p.querySelectorAll('rect')].map(r => r.height.baseVal.value)")
        part.focus()
        tip = page.locator(".tip").text_content()
        (label,) = [name for name in heads if f"through {name}:" in tip]
        come = heads[label]["paths"] / int(part.get_attribute("data-paths"))
        assert sum(box[1:]) / box[0] == pytest.approx(min(1, come), abs=1e-6)
        assert f"of the {percent(heads[label]['paths'] / total)} through " in tip
        seen += 1
    assert seen


def test_what_is_dead_is_known_without_a_group_of_all_parameters(stuck, tmp_path, open_report):
    groups = {"head": "head.*", "early": ["off.*", "squeeze.*"]}
    page = open_report(stuck.report(tmp_path / "report.html", kinds="greedy", groups=groups)).page
    page.fill("#search-parameter", "off.weight")
    assert page.locator("#paths .found").text_content() == "Dead: no path leads from off.weight to the loss."
    page.fill("#search-parameter", "squeeze.bias")  # of which some scalars live
    assert "Dead" not in page.locator("#paths .found").text_content()


@in_both
def test_what_is_dead_says_so_where_it_is_looked_for(stuck_report, open_report):
    report = open_report(stuck_report)
    page = report.page
    assert page.locator("#group").input_value() == "squeeze"  # the earliest with a path
    groups = page.locator("#group option").all_text_contents()
    assert groups == ["off", "squeeze", "value", "gate", "head", "all parameters"] or groups[:2] == ["off", "squeeze"]
    for text in ("off.weight", "off.*", "off"):
        page.fill("#search-parameter", text)
        said = page.locator("#paths .found").text_content()
        assert said.startswith("Dead: no path leads from off.weight")
        assert "get no gradient" in page.locator("#paths .detail").text_content()  # as the finding says it
        assert page.locator("#flow .lit path").count() == 0
    page.fill("#search-parameter", "no such name")
    assert "has such a name: frozen ones" in page.locator("#paths .found").text_content()
    page.fill("#search-parameter", "")
    assert "nothing trains these parameters here" in tip_of(report, '#influence .dead[data-of="off"]')
    assert "none of these parameters has a path" in tip_of(report, '#influence .cell[data-of="off"]')
    page.select_option("#group", "off")
    said = page.locator("#flow .body").text_content()
    assert "Dead: none of these parameters has a path to the loss" in said
    told = [f["text"] for f in report.data["snapshots"][-1]["findings"] if f["kind"] == "dead"]
    assert any(text in said for text in told)
    assert page.locator("#paths h3").count() == 0


@in_both
def test_the_chosen_path_is_one_that_shows(stuck_report, open_report):
    report = open_report(stuck_report)
    page = report.page

    def chosen() -> str:
        return page.locator("#paths h3").text_content().removeprefix("greedy path from ")

    def listed() -> list[str]:
        return page.locator("#paths .pathlist button").evaluate_all("all => all.map(b => b.dataset.path)")

    for group in ("gate", "head", "value"):
        page.select_option("#group", group)
        assert chosen() == listed()[0]
        assert page.locator("#flow .lit path").count() > 0
    page.locator("#paths .pathlist button").nth(1).click()
    second = chosen()
    page.select_option("#kind", "greedy") if page.locator("#kind").count() else None
    assert chosen() == second == listed()[1]
    page.fill("#search-parameter", "squeeze.bias")
    assert chosen() == listed()[0]
    assert chosen().startswith("squeeze.bias")
    assert page.locator("#flow .lit path").count() == 0  # it is not of the group that the flow is of
    assert "is none of them" in page.locator("#flow .totals").text_content()
    address = page.url
    page.fill("#search-parameter", "")
    assert chosen().startswith("value")
    again = open_report(stuck_report)
    again.requests.clear()
    again.page.goto(address)
    again.wait_for_value("#search-parameter", "squeeze.bias")
    again.requests[:] = [stuck_report.as_uri()]
    for example in range(4):
        page.select_option("#example", str(example))
        for group in page.locator("#group option").all_text_contents():
            page.select_option("#group", group)
            assert max(Counter(listed()).values(), default=1) == 1
            if listed():
                assert chosen() in listed()
                assert f"example {example}." in page.locator("#paths .weight").text_content()


def test_joins_have_a_picture_and_a_column_of_examples(stuck_report, open_report):
    report = open_report(stuck_report)
    texts: dict[str, Any] = {}
    for kind in ("svg", "csv"):
        with report.page.expect_download() as download:
            report.page.locator(f"#joins [data-save={kind}]").click()
        texts[kind] = download.value.path().read_text(encoding="utf-8")
    assert len(list(ET.fromstring(texts["svg"]).iter())) > 10
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert {row["example"] for row in rows} == {"all", "0", "1", "2", "3"}
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in ("parameters", "join", "operator", "branch"))]
        assert sum(float(r["paths"]) for r in same if r["example"] != "all") == float(same[0]["paths"])


@in_both
def test_what_decides_is_seen_on_a_phone(stuck_report, open_report):
    report = open_report(stuck_report)
    report.page.set_viewport_size({"width": 390, "height": 800})
    report.page.wait_for_timeout(100)
    for cell in report.page.locator("#joins td.share, #influence .dead").all():
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 390 - 24
    for holder in report.page.locator("#joins .scroll, #influence .scroll, #flow .scroll").all():
        over = holder.evaluate("h => h.scrollWidth > h.clientWidth + 1")
        hint = holder.evaluate("h => h.nextElementSibling?.className === 'hint'")
        assert over == hint


def test_a_tip_does_not_cover_the_picture_that_it_speaks_of(stuck_report, open_report):
    report = open_report(stuck_report)
    report.page.locator("#flow").scroll_into_view_if_needed()
    for part in report.page.locator("#flow .part").all():
        part.locator("rect").first.hover(force=True)
        tip, box = report.page.locator(".tip").bounding_box(), report.page.locator("#flow svg.flow").bounding_box()
        assert tip["y"] >= box["y"] + box["height"] or tip["y"] + tip["height"] <= box["y"]


def test_every_name_in_the_flow_is_its_own(gpt2_report, stuck_report, open_report):
    for file in (gpt2_report, stuck_report):
        report = open_report(file)
        for _ in range(3):
            names = report.page.locator("#flow .part.modules").evaluate_all("all => all.map(p => p.dataset.name)")
            assert max(Counter(names).values()) == 1
            assert all(names)
            shown = report.page.locator("#flow .part.modules .name").all_text_contents()
            assert not any(name.removeprefix("▸ ") == "add" for name in shown)
            parts = report.page.locator("#flow .part.opens.modules:not(.run)")
            if parts.count():
                parts.last.dispatch_event("click")
        rows = report.page.locator("#flow details tbody tr").evaluate_all(
            "all => all.map(r => r.cells[0].textContent + ' → ' + r.cells[1].textContent)"
        )
        assert max(Counter(rows).values()) == 1


class Halves(torch.nn.Module):
    """Of some examples a mask lets nothing through, and all of them are centred together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) * mask)


@pytest.fixture(scope="module")
def halves_report(tmp_path_factory) -> Path:
    model, x, mask = Halves(), torch.randn(4, 4), torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None]
    with record(model, examples=x) as tape:
        y = model(x, mask)
        loss = (y @ y.T).square().mean()
    return tape.trace(loss).report(tmp_path_factory.mktemp("halves") / "report.html")


def test_examples_that_are_connected_are_said_to_be_so(halves_report, open_report):
    page = open_report(halves_report).page
    sentences = page.locator(".headline p").all_text_contents()
    assert any(re.match(r"Examples are connected at mm", s) for s in sentences)
    assert "4, connected" in page.locator("#provenance").text_content()
    assert "each on its own" not in page.locator("#provenance").text_content()


def test_an_example_without_paths_is_not_said_to_be_the_death_of_parameters(tmp_path, open_report):
    model, x, mask = Halves(), torch.randn(4, 4), torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None]
    with record(model, examples=x) as tape:
        loss = model(x, mask).square().sum()
    page = open_report(tape.trace(loss).report(tmp_path / "report.html", groups={"first": "first.*"})).page
    text = "In 2 of the 4 examples (1 and 2) no path leads from first.weight, first.bias and second.weight to the loss."
    assert text.replace("first.weight, first.bias", "first") in page.locator(".headline p").all_text_contents()
    page.select_option("#example", "1")
    said = page.locator("#flow .none").all_text_contents()
    assert said == ["None of these parameters has a path to the loss in example 1, which does not train them."]


def test_a_search_reads_what_a_list_shows_and_says_what_is_wrong_with_an_index(gpt2_report, open_report):
    page = open_report(gpt2_report).page
    entry = page.locator("#paths .pathlist button").first.get_attribute("data-path")
    page.fill("#search-parameter", entry)
    assert page.locator("#paths .pathlist button").first.get_attribute("data-path") == entry
    name, _, index = entry.rstrip("]").partition("[")
    assert page.input_value("#search-parameter") == name
    assert page.input_value("#search-index") == index
    found = page.locator("#paths .found")
    page.fill("#search-index", "99999, 0")
    assert "has no such index: its shape is (" in found.text_content()
    page.fill("#search-index", "a")
    assert found.text_content() == "An index is one number for each axis, such as 3, 5."


def test_a_legend_is_all_there_on_any_screen(halves_report, open_report):
    page = open_report(halves_report).page
    for width in (390, 800, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        ends = page.evaluate(
            "[...document.querySelectorAll('svg.flow .legend text')].map(t => t.getBoundingClientRect().right)"
        )
        assert max(ends) <= page.evaluate("document.querySelector('svg.flow').getBoundingClientRect().right + 1")
