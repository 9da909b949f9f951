"""The report in a browser, Debian's Chromium and some of it in Firefox, on real runs.

Every test that opens a report also checks, when it is over, that nothing was said on the console and that the page
asked for nothing but itself.
"""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from typing import Any

import pytest
from browsers import in_both

from gradtrace.queries.forest import FIRST, KINDS
from gradtrace.report.document import of_trace
from gradtrace.report.fold import label_of, links_at, shown_for
from gradtrace.report.page import frame as frame_of
from gradtrace.report.page import render
from gradtrace.report.snapshot import Question
from gradtrace.report.words import percent

VIEWS = ("flow", "influence", "paths", "training", "ablation", "provenance")
VIEWS_OF_A_TRACE = ("flow", "influence", "paths", "provenance")


@pytest.fixture(params=["competition_report", "gpt2_report"])
def any_report(request):
    return request.getfixturevalue(request.param)


def ribbons(report) -> dict[tuple[str, str], float]:
    rows = report.page.locator("#flow .ribbons path:not(.idle)").evaluate_all(
        "all => all.map(p => [p.dataset.source, p.dataset.target, Number(p.dataset.paths)])"
    )
    return {(source, target): paths for source, target, paths in rows}


def opened(report) -> list[int]:
    return [int(n) for n in report.page.locator("#flow svg.flow").get_attribute("data-open").split()]


def homes(report) -> dict[str, str]:
    """The runs on the screen, by the parts that each stands for."""
    runs = report.page.locator("#flow .part[data-members]").evaluate_all(
        "all => all.map(p => [p.dataset.id, p.dataset.members.split(' ')])"
    )
    return {member: run for run, members in runs for member in members}


def part_name(report, end: str) -> str:
    shown = report.page.locator(
        f'#flow .part[data-id="{end}"]'
    )  # a run is called by its ends, an operator by its module
    return shown.get_attribute("data-name") if end[0] in "rm" else label_of(report.data["graph"], end)


def expected(report, flow: dict[str, Any]) -> dict[tuple[str, str], float]:
    home = homes(report)
    out: dict[tuple[str, str], float] = defaultdict(float)
    for ends, (paths, _) in links_at(report.data["graph"], flow, opened(report)).items():
        source, target = (home.get(end, end) for end in ends)
        if source != target:
            out[source, target] += paths
    return dict(out)


def assert_conserves(found: dict[tuple[str, str], float], total: float) -> None:
    into, out = defaultdict(float), defaultdict(float)
    for (source, target), paths in found.items():
        out[source] += paths
        into[target] += paths
    assert into.pop("loss") == pytest.approx(total)
    for node, paths in into.items():
        entered = into[node]
        assert out[node] == pytest.approx(entered), node
        assert paths <= total * (1 + 1e-9)
    assert sum(n for node, n in out.items() if node[0] == "p") == pytest.approx(total)


@in_both
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_renders(any_report, open_report, scheme):
    report = open_report(any_report, color_scheme=scheme)
    page = report.page
    for view in VIEWS if report.data["kind"] == "compete" else VIEWS_OF_A_TRACE:
        section = page.locator(f"#{view}")
        assert section.locator("h2").is_visible()
        assert len(section.locator(".how").text_content()) > 80  # how to read it,
        assert section.locator(".how em").text_content()  # and what it does not mean
        assert section.locator(".body").bounding_box()["height"] > 20
    assert page.locator("#flow .part").count() > 3
    assert page.locator("#influence .cell").count() >= 6
    assert page.locator("#paths tbody tr").count() > 3
    assert page.locator("#provenance dt").count() > 5
    if report.data["kind"] == "compete":
        assert page.locator("#training canvas").count() == 2
        assert page.locator("#ablation .point").count() == 3
        dips = {row["component"]: row["dip"]["mean"] for row in report.data["ablation"]["rows"]}
        for component, dip in dips.items():
            shown = page.locator(f"#ablation .dip[data-absent='{component}']").get_attribute("data-dip")
            assert float(shown) == dip
    else:
        assert page.locator("#training, #ablation").count() == 0  # there is nothing to show
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")


def test_charts_of_training_have_ink(competition_report, open_report):
    report = open_report(competition_report)
    for i in range(2):
        colours = (
            report.page.locator("#training canvas")
            .nth(i)
            .evaluate(
                """canvas => { const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                const seen = new Set();
                for (let k = 0; k < data.length; k += 4) if (data[k + 3] > 250) seen.add(data.slice(k, k + 3).join());
                return [...seen]; }"""
            )
        )
        assert {"0,114,178", "230,159,0", "0,158,115"} <= set(colours)  # the colours of rnn, lstm and gru


def test_the_headline_says_who_carries_most_and_whether_ablation_agreed(competition_report, open_report):
    report = open_report(competition_report)
    said = report.page.locator(".headline p").all_text_contents()
    assert said == report.data["headline"]
    best = [r for r in report.data["influence"] if r["kind"] == FIRST]
    top = max(best, key=lambda r: r["share"])
    assert said[0].startswith(f"{top['component']} carries most: {percent(top['share'])}")
    verdict = report.data["agreement"]["rows"][0]["verdict"]
    words = {"agree": "Ablation agreed", "disagree": "Ablation did not agree", "undecided": "Ablation neither"}
    assert said[1].startswith(words[verdict])
    assert "n = 3 components and one seed" in said[2]
    assert report.page.locator(".headline").bounding_box()["y"] < 300  # it is what one sees first


def test_flow_on_screen_is_that_of_the_data(any_report, open_report):
    report = open_report(any_report)
    for of in dict.fromkeys(f["of"] for f in report.data["snapshots"][-1]["flows"][:6]):
        for kind in ("best", "greedy"):
            report.page.select_option("#group", of)
            report.page.select_option("#kind", kind)
            flow = report.flow(-1, of, kind)
            assert ribbons(report) == pytest.approx(expected(report, flow))
            for (source, target), paths in expected(report, flow).items():
                names = [part_name(report, end) for end in (source, target)]
                row = report.page.locator("#flow details tbody tr", has_text=names[0]).filter(has_text=names[1])
                assert percent(paths / flow["total"]) in " ".join(row.all_text_contents())
    assert f"{flow['total']:,.0f} {kind} paths" in report.page.locator("#flow .totals").text_content()


def test_pointing_at_a_part_gives_raw_figures(competition_report, open_report):
    report = open_report(competition_report)
    flow = report.flow()
    part = report.page.locator('#flow .part[data-name="gru"]')
    part.locator("rect").hover()
    tip = report.page.locator(".tip")
    paths = sum(n for (_, target), n in expected(report, flow).items() if target == part.get_attribute("data-id"))
    assert f"{paths:,.0f} of {flow['total']:,.0f} paths: {percent(paths / flow['total'])}" in tip.text_content()


def test_opening_and_closing_conserves_the_totals(any_report, open_report):
    report = open_report(any_report)
    flow = report.flow()
    before = ribbons(report)
    assert_conserves(before, flow["total"])
    for _ in range(4):
        parts = report.page.locator("#flow .part.opens.modules")
        parts.nth(parts.count() // 2).dispatch_event("click")
        found = ribbons(report)
        assert found == pytest.approx(expected(report, flow))
        assert_conserves(found, flow["total"])
    report.page.locator("#flow .opened summary").click()
    chips = report.page.locator("#flow .chip", has_not_text="parameters")
    for _ in range(3):
        chips.last.click()
        assert_conserves(ribbons(report), flow["total"])
    report.page.get_by_text("Fold as at first").click()
    assert ribbons(report) == before


def assert_folded(report, flow: dict[str, Any]) -> None:
    """Runs are chains with one way in and one way out, those that paths do not take too; nothing is left to fold."""
    graph, home = report.data["graph"], homes(report)
    shown, of_call = shown_for(graph["modules"], opened(report)), {c: n for n, c in enumerate(graph["modules"]["item"])}
    ends = ((of_call[a], of_call[b]) for a, b in zip(graph["links"]["source"], graph["links"]["target"], strict=True))
    ways = {(f"m{shown[a]}", f"m{shown[b]}") for a, b in ends if shown[a] != shown[b]}
    ways |= set(links_at(graph, flow, opened(report)))
    there = set(report.page.locator("#flow .part").evaluate_all("all => all.map(p => p.dataset.id)")) | set(home)
    ways = {way for way in ways if there >= set(way)}
    out, into = defaultdict(set), defaultdict(set)
    for source, target in ways:
        out[source].add(target)
        into[target].add(source)
    for source, target in ways:
        alone = len(out[source]) == len(into[target]) == 1 and source[0] == "m" and target != "loss"
        assert alone == (source in home and home[source] == home.get(target)), (source, target)


def test_what_everything_crosses_is_one_node(any_report, open_report):
    report = open_report(any_report)
    for of in dict.fromkeys(f["of"] for f in report.data["snapshots"][-1]["flows"][:6]):
        report.page.select_option("#group", of)
        assert_folded(report, report.flow(of=of))


def test_a_run_unfolds_by_keyboard_and_has_an_address(gpt2_report, open_report):
    report = open_report(gpt2_report)
    run = report.page.locator("#flow .part.run").first
    members = run.get_attribute("data-members").split()
    assert "unfolds" in run.get_attribute("aria-label")
    run.focus()
    assert f"{len(members)} parts, one after the other" in report.page.locator(".tip").text_content()
    report.page.keyboard.press("Enter")
    for member in members:
        assert report.page.locator(f'#flow .part[data-id="{member}"]').count() == 1
    assert report.page.evaluate("document.activeElement.dataset.id") == members[0]
    assert "runs=" in report.page.url


def test_one_layer_at_a_time(gpt2_report, open_report):
    report = open_report(gpt2_report)
    names, flow = report.data["graph"]["modules"]["name"], report.flow()
    layer = report.page.locator("#layer")
    layer.focus()
    for _ in range(4):
        report.page.keyboard.press("ArrowRight")
    assert layer.get_attribute("aria-valuetext") == "transformer.h.3"
    is_open = {names[n] for n in opened(report)}
    assert [n for n in is_open if n.startswith("transformer.h.")]
    assert all(n.startswith("transformer.h.3") for n in is_open if n.startswith("transformer.h."))
    assert ribbons(report) == pytest.approx(expected(report, flow))
    home = homes(report)
    behind = {home[f"m{names.index(f'transformer.h.{n}')}"] for n in range(4, 12)}
    assert len(behind) == 1  # what is behind the layer is one part
    for _ in range(4):
        report.page.keyboard.press("ArrowLeft")
    assert layer.get_attribute("aria-valuetext") == "as at first"


def test_what_no_path_takes_is_drawn_beside_what_they_take(idle_report, open_report):
    report = open_report(idle_report)
    part = report.page.locator("#flow .part.idle")
    assert part.count() == 1
    assert "inner" in part.get_attribute("data-name")
    assert part.get_attribute("aria-label").split(": ")[1].startswith("0.0% of paths")
    assert report.page.locator("#flow .ribbons .idle").count() == 2  # there and back
    assert report.page.locator("#flow .skips text").text_content().startswith("around ")


def test_heads_and_experts_are_lanes_as_high_as_their_shares(gpt2_report, open_report):
    report = open_report(gpt2_report)
    report.page.select_option("#group", "all parameters")
    report.page.locator("#layer").focus()
    for _ in range(3):
        report.page.keyboard.press("ArrowRight")
    table = next(t for t in report.data["snapshots"][-1]["joins"] if (t["table"], t["kind"]) == ("all", FIRST))
    heads = [g for g in table["grids"] if g["operator"] == "heads"]
    rows = {label: j for g in heads for j, label in zip(g["joins"], g["labels"], strict=True)}
    wanted = {name: share for name, (_, share, _) in rows["transformer.h.2.attn"]["branches"].items()}
    part = report.page.locator('#flow .part[data-name*="h.2.attn"]:has(.lane)')
    found = part.locator(".lane").evaluate_all(
        "all => all.map(l => [l.dataset.lane, Number(l.dataset.share), l.height.baseVal.value])"
    )
    assert {name: share for name, share, _ in found} == pytest.approx(wanted)
    height = sum(h for *_, h in found)
    assert [h / height for *_, h in found] == pytest.approx([share for _, share, _ in found], abs=1e-6)
    part.focus()
    assert all(name in report.page.locator(".tip").text_content() for name in wanted)


@in_both
def test_opening_by_keyboard(gpt2_report, open_report):
    report = open_report(gpt2_report)
    report.page.select_option("#group", "all parameters")
    part = report.page.locator('#flow .part[data-name="transformer.h.3"].modules')
    part.focus()
    assert "transformer.h.3" in report.page.locator(".tip").text_content()
    assert part.get_attribute("aria-expanded") == "false"
    report.page.keyboard.press("Enter")
    assert report.page.locator('#flow .part[data-name="transformer.h.3.mlp"]').count() == 1
    report.page.locator("#flow .opened summary").click()
    chip = report.page.locator("#flow .chip", has_text="transformer.h.3")
    chip.focus()
    report.page.keyboard.press("Enter")
    assert report.page.locator('#flow .part[data-name="transformer.h.3.mlp"]').count() == 0


def test_everything_that_acts_can_be_reached_by_tab(competition_report, open_report):
    report = open_report(competition_report)
    wanted = "a[href], button, select, input, summary, .part, .cell, .point"
    unreachable = report.page.locator(wanted).evaluate_all("all => all.filter(e => e.tabIndex < 0).length")
    unnamed = report.page.locator("button, select, input").evaluate_all(
        "all => all.filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert (unreachable, unnamed) == (0, 0)


def test_columns_lead_from_parameters_to_the_loss(any_report, open_report):
    report = open_report(any_report)
    boxes = report.page.locator("#flow .part").evaluate_all(
        "all => all.map(p => [p.dataset.id, p.querySelector('rect').x.baseVal.value])"
    )
    x = dict(boxes)
    assert all(x[source] < x[target] for source, target in ribbons(report))
    assert max(x, key=lambda n: x[n]) == "loss"
    assert min(x, key=lambda n: x[n])[0] == "p"


@pytest.mark.parametrize("measure", ["share", "weighted_share"])
def test_influence_on_screen_is_that_of_the_data(competition_report, open_report, measure):
    report = open_report(competition_report)
    report.page.select_option("#count", measure)
    rows = report.data["snapshots"][-1]["influence"]
    found = report.page.locator("#influence .cell").evaluate_all(
        "all => all.map(c => [c.dataset.kind, c.dataset.component, c.querySelector('text').textContent])"
    )
    assert sorted(found) == sorted([r["kind"], r["component"], percent(r[measure])] for r in rows)
    dead = report.page.locator("#influence .dead text").all_text_contents()
    assert dead == [percent(next(r for r in rows if r["kind"] == kind)["dead_share"]) for kind in KINDS]


def test_joins_on_screen_are_those_of_the_data(gpt2_report, open_report):
    report = open_report(gpt2_report)
    tables = {t["table"]: t for t in report.data["snapshots"][-1]["joins"] if t["kind"] == FIRST}
    for name, field in (("early", "share"), ("all", "weighted_share")):
        report.page.select_option("#joins-of", name)
        report.page.select_option("#count", field)
        while (more := report.page.locator("#joins .more")).count():
            more.click()
        found = report.page.locator("#joins td.share").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
        joins = [(j, label) for g in tables[name]["grids"] for j, label in zip(g["joins"], g["labels"], strict=True)]
        at = ("paths", "share", "weighted_share").index(field)
        assert sorted(found) == sorted(
            f"{label}, {branch}: {percent(numbers[at])}"
            for j, label in joins
            for branch, numbers in j["branches"].items()
        )
    wide = report.page.locator("#joins th").evaluate_all("all => all.filter(h => h.scrollWidth > h.clientWidth).length")
    assert wide == 0  # no name runs into the next
    said = report.page.locator(".headline p").all_text_contents()
    assert said == [f["text"] for f in report.data["snapshots"][-1]["findings"]]


def test_a_model_without_modules_has_its_operators_and_no_complaint(open_report, tmp_path):
    import torch

    from gradtrace import record

    model = torch.nn.Linear(3, 1)
    with record(model) as tape:
        loss = model(torch.randn(2, 3)).square().mean()
    report = open_report(tape.trace(loss).report(tmp_path / "r.html"))
    asked = {row["component"] for row in report.data["snapshots"][0]["influence"]}
    assert asked == {"aten::addmm", "aten::pow", "aten::mean"}
    assert report.page.locator("#influence .cell").count() >= len(asked)
    assert report.page.locator("#influence .none").count() == 0
    assert report.page.locator("#flow .part").count() > 1


def test_influence_of_many_groups_is_exact_to_the_pointer(gpt2_report, open_report):
    report = open_report(gpt2_report)
    for row in report.data["snapshots"][0]["influence"][:60:7]:
        report.page.select_option("#kind", row["kind"])
        cell = report.page.locator(f'#influence .cell[data-of="{row["of"]}"][data-component="{row["component"]}"]')
        assert cell.get_attribute("aria-label").endswith(f"{row['kind']}: {percent(row['share'])}")


def test_a_shared_parameter_is_found_by_its_further_name(gpt2_report, open_report):
    page = open_report(gpt2_report).page
    page.fill("#search-parameter", "lm_head.weight")
    assert (
        page.locator("#paths .found")
        .text_content()
        .startswith("lm_head.weight is another name of transformer.wte.weight. ")
    )
    starts = page.locator("#paths .pathlist button").all_text_contents()
    assert starts
    assert all("transformer.wte.weight" in text for text in starts)


def test_search_finds_a_path_and_shows_its_steps(gpt2_report, gpt2, open_report):
    trace, _ = gpt2
    report = open_report(gpt2_report)
    starts = report.data["snapshots"][0]["paths"][FIRST]["starts"]
    names = report.data["graph"]["parameters"]["name"]
    at = next(i for i, leaf in enumerate(starts["leaf"]) if names[leaf] == "transformer.h.2.mlp.c_fc.weight")
    name, index = names[starts["leaf"][at]], starts["index"][at]
    report.page.fill("#search-parameter", "transformer.h.2.mlp.c_fc.w*")
    report.page.fill("#search-index", ", ".join(map(str, index)))
    entries = report.page.locator("#paths .pathlist button")
    assert entries.evaluate_all("all => all.map(b => b.dataset.path)") == [f"{name}[{', '.join(map(str, index))}]"]
    entries.first.click()
    path = trace.path(name, tuple(index), example=starts["example"][at])
    rows = report.page.locator("#paths tbody tr:not(.folded)").evaluate_all(
        "all => all.map(r => [...r.cells].map(c => c.textContent))"
    )
    assert len(rows) == len(path.steps)
    for row, step in zip(rows, path.steps, strict=True):
        assert row[1] == step.operator.removeprefix("aten.").removesuffix(".default")
        assert row[2] == (str(list(step.index)) if step.index else "")
        assert float(row[4].replace("−", "-")) == pytest.approx(step.derivative, rel=1e-4)
        assert row[5] == f"2^{step.log2_weight:.2f}".replace("-", "−")
    assert any(row[3].strip("“”").startswith("word") for row in rows)
    assert report.page.locator("#flow .lit path").count() > 2


def test_an_example_shows_its_own_shares_and_paths(gpt2_report, open_report):
    report = open_report(gpt2_report)
    page, snapshot = report.page, report.data["snapshots"][-1]
    options = page.locator("#example option").all_text_contents()
    assert options[0] == "all 2"
    assert options[2].startswith("1: word")
    page.select_option("#example", "1")
    own = snapshot["examples"][1]
    for row, (share, *_) in list(zip(snapshot["influence"], own["influence"], strict=True))[:40:5]:
        cell = page.locator(f'#influence .cell[data-of="{row["of"]}"][data-component="{row["component"]}"]')
        if row["kind"] == FIRST:
            assert cell.get_attribute("aria-label").endswith(f": {percent(share)}")
    at = next(n for n, t in enumerate(snapshot["joins"]) if (t["table"], t["kind"]) == ("early", FIRST))
    table, numbers = snapshot["joins"][at], own["joins"][at]
    wanted = [
        f"{label}, {branch}: {percent(values[1])}"
        for grid, rows in zip(table["grids"], numbers, strict=True)
        for join, label, row in zip(grid["joins"], grid["labels"], rows, strict=True)
        for branch, values in zip([b for b in grid["branches"] if b in join["branches"]], row, strict=True)
    ]
    while (more := page.locator("#joins .more")).count():
        more.click()
    found = page.locator("#joins td.share").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
    assert sorted(found) == sorted(wanted)
    assert "Of example 1 alone: word" in page.locator("#joins .whose").inner_text()
    starts = snapshot["paths"][FIRST]["starts"]
    assert "example 1." in page.locator("#paths .weight").text_content()
    page.fill("#search-parameter", "transformer")
    said = page.locator("#paths .found").text_content()
    names = report.data["graph"]["parameters"]["name"]
    hits = sum(e == 1 and "transformer" in names[n] for e, n in zip(starts["example"], starts["leaf"], strict=True))
    assert said.startswith(f"{hits} of {len(starts['leaf'])} paths in this file, of example 1")
    assert page.locator("#paths .pathlist q").count() > 5  # words in lists, too
    again = open_report(gpt2_report)
    again.requests.clear()
    again.page.goto(page.url)  # where the page is already, so that it loads itself again
    again.wait_for_value("#example", "1")
    again.requests[:] = [gpt2_report.as_uri()]


def test_a_search_without_a_hit_says_what_to_do(gpt2_report, open_report):
    report = open_report(gpt2_report)
    report.page.fill("#search-parameter", "transformer.wpe.weight")
    report.page.fill("#search-index", "999, 999")
    said = report.page.locator("#paths .found").text_content()
    assert said == "transformer.wpe.weight has no such index: its shape is (32, 64)."
    held = {tuple(i) for i in report.data["snapshots"][-1]["paths"]["greedy"]["starts"]["index"]}
    index = next((i, j) for i in range(32) for j in range(64) if (i, j) not in held)
    report.page.fill("#search-index", f"{index[0]}, {index[1]}")
    said = report.page.locator("#paths .found").text_content()
    assert "Not among the" in said
    assert f'trace.path("transformer.wpe.weight", ({index[0]}, {index[1]},))' in said


@in_both
def test_paths_by_keyboard(competition_report, open_report):
    report = open_report(competition_report)
    buttons = report.page.locator("#paths .pathlist button")
    buttons.first.focus()
    report.page.keyboard.press("ArrowDown")
    report.page.keyboard.press("Enter")
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    assert buttons.nth(1).evaluate("b => b === document.activeElement")


@in_both
def test_scrubbing_moves_every_view(competition_report, open_report):
    report = open_report(competition_report)
    slider = report.page.locator("#step")
    slider.focus()
    seen = set()
    for number in range(len(report.data["snapshots"]) - 1, -1, -1):
        taken = report.data["snapshots"][number]
        assert report.page.locator("output[for=step]").text_content() == str(taken["step"])
        assert ribbons(report) == pytest.approx(expected(report, report.flow(number)))
        shares = [percent(r["share"]) for r in taken["influence"]]
        assert report.page.locator("#influence .cell text").all_text_contents() == shares
        now = report.page.locator("#training .now").text_content()
        assert now.startswith(f"Step {taken['step']}: ")
        assert all(f"{r['component']} {percent(r['share'])}" in now for r in taken["influence"] if r["kind"] == FIRST)
        strongest = taken["paths"][FIRST]["starts"]["log2"][0]
        entry = report.page.locator("#paths .pathlist button .number").first
        assert entry.text_content() == f"2^{strongest:.2f}".replace("-", "−")
        seen.add(tuple(shares))
        report.page.keyboard.press("ArrowLeft")
    assert len(seen) > 1


def test_clicking_the_timeline_chooses_the_step(competition_report, open_report):
    report = open_report(competition_report)
    over = report.page.locator("#training .u-over").first
    over.click(position={"x": 3, "y": 30})
    assert report.page.locator("output[for=step]").text_content() == str(report.data["snapshots"][0]["step"])


def test_ablation_on_screen_is_that_of_the_data(competition_report, open_report):
    report = open_report(competition_report)
    for i, row in enumerate(report.data["agreement"]["rows"]):
        report.page.select_option("#agreement", str(i))
        said = report.page.locator("#ablation .verdict").text_content()
        rho = "undefined" if row["spearman"] is None else f"{row['spearman']:.2f}".replace("-", "−")
        assert said.startswith(f"Spearman ρ = {rho}, n = {row['n']} ({row['verdict']})")
        for outcome in report.data["ablation"]["rows"]:
            point = report.page.locator(f'#ablation .point[data-component="{outcome["component"]}"]')
            share = next(
                r[row["measure"]]
                for r in report.data["influence"]
                if r["kind"] == row["kind"] and r["component"] == outcome["component"]
            )
            samples = "not reached" if outcome["samples"] is None else str(outcome["samples"])
            assert float(point.get_attribute("data-share")) == share
            assert point.get_attribute("data-samples") == samples
    cells = report.page.locator("#ablation table").first.locator("tbody tr").all_text_contents()
    for outcome, text in zip(report.data["ablation"]["rows"], cells[1:], strict=True):
        assert f"{outcome['final_perplexity']:.1f}" in text


def test_provenance_tells_what_there_is_to_know(competition_report, gpt2_report, open_report):
    for file, wanted in (
        (competition_report, ("torch", "seed", "command", "12.5", "345 MiB", "passed at the first trace", "none")),
        (gpt2_report, ("torch", "seed", "command", "148 tensors", "peak memory", "passed: 148 parameters", "none")),
    ):
        report = open_report(file)
        text = report.page.locator("#provenance .body").text_content()
        assert all(word in text for word in wanted)
        rows = [pair for _, entries in report.data["provenance"] for pair in entries]
        assert report.page.locator("#provenance dd").all_text_contents() == [value for _, value in rows]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_can_be_saved(competition_report, open_report, view):
    report = open_report(competition_report)
    for kind in ("svg", "csv"):
        with report.page.expect_download() as download:
            report.page.locator(f"#{view} [data-save={kind}]").click()
        text = download.value.path().read_text(encoding="utf-8")
        assert download.value.suggested_filename == f"gradtrace-{view}.{kind}"
        if kind == "svg":
            root = ET.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert len(list(root.iter())) > 10
        else:
            rows = list(csv.reader(io.StringIO(text)))
            assert len(rows) > 2
            assert len({len(row) for row in rows}) == 1


def test_saved_figures_are_those_of_the_data(competition_report, open_report):
    report = open_report(competition_report)
    with report.page.expect_download() as download:
        report.page.locator("#influence [data-save=csv]").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    wanted = report.data["snapshots"][-1]["influence"]
    assert [float(r["share"]) for r in rows] == [r["share"] for r in wanted]


def test_hostile_names_are_text(hostile_report, hostile_names, open_report):
    report = open_report(hostile_report)
    page = report.page
    source = hostile_report.read_text(encoding="utf-8")
    assert source.count("</script") == 2  # the data's and the script's own
    assert page.locator("script").count() == 2
    assert page.locator("#app img, #app b, #app script, #app iframe").count() == 0
    assert page.title() == "</title><script>alert(6)</script>"
    text = page.locator("body").text_content()
    for name in hostile_names:
        assert name in text
    for part in page.locator("#flow .part").all()[:6]:
        part.hover(force=True)
        assert page.locator(".tip img, .tip script").count() == 0
    assert not page.evaluate("'alerted' in window")
    with page.expect_download() as download:
        page.locator("#influence [data-save=csv]").click()
    assert download.value.path().stat().st_size > 100


@in_both
def test_nothing_may_be_fetched_or_added(competition_report, open_report):
    report = open_report(competition_report)
    policy = report.page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    # the policy is in force: a script that somebody managed to insert does not run
    ran = report.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s); return window.ran; }"
    )
    assert ran is None
    report.page.wait_for_timeout(200)
    assert any(
        re.search("Content Security Policy|settings blocked an inline script", text) for text in report.complaints
    )
    report.complaints.clear()


def test_a_twelve_layer_gpt2_is_small_and_opens(gpt2_report, open_report):
    assert gpt2_report.stat().st_size < 5_000_000
    open_report(gpt2_report)  # how fast, benchmarks/opening.py measures


def test_paper_gets_everything_in_light_colours(competition_report, open_report):
    report = open_report(competition_report, color_scheme="dark")
    report.page.emulate_media(media="print")
    assert not report.page.locator("nav").is_visible()
    for view in VIEWS:
        assert report.page.locator(f"#{view} h2").is_visible()
    assert report.page.locator("#training .paper polyline").count() == 3 + 4  # not the canvas, which would be cut off
    assert report.page.locator("#training .paper").is_visible()
    pdf = report.page.pdf(prefer_css_page_size=True)
    assert pdf[:5] == b"%PDF-"


def test_nothing_sticks_out_on_a_narrow_screen(any_report, open_report):
    report = open_report(any_report)
    report.page.set_viewport_size({"width": 420, "height": 800})
    report.page.wait_for_timeout(100)
    assert report.page.evaluate("document.documentElement.scrollWidth") <= 420


def test_labels_do_not_overlap(competition_report, open_report):
    report = open_report(competition_report)
    for selector in ("#flow .part .name", "#influence .heat text", "#ablation .scatter .name", ".legend text"):
        report.assert_apart(selector)


def test_a_frame_shows_a_page_in_a_notebook(browser):
    import torch

    from gradtrace import record

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(5, 3)
    with record(model, examples=x) as tape:
        loss = model(x).square().mean()
    trace = tape.trace(loss)
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.set_content(f"<body>{frame_of(render(of_trace(trace, Question())))}</body>")
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    assert frame.locator("#flow .part").count() >= 4
    assert json.loads(frame.locator("#data").text_content())["kind"] == "trace"
    assert said == []
    page.close()
