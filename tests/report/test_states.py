"""What the page opens with, its address, and whether everybody can use it: by axe-core's rules, at three widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browsers import in_both
from torch import Tensor, nn

from gradtrace import record
from gradtrace.queries.forest import FIRST

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
WIDTHS = (390, 800, 1280)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.6 * self.inner(x)


@pytest.fixture(scope="session")
def blocks_report(tmp_path_factory):
    """Residual blocks between a stem and a head, which all paths cross, and inside which they part."""
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(6, 8), **{f"block{i}": Block(8) for i in range(3)}, "head": nn.Linear(8, 1)}
    model, x = nn.Sequential(), torch.randn(5, 6)
    for name, part in parts.items():
        model.add_module(name, part)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    return tape.trace(loss).report(tmp_path_factory.mktemp("blocks") / "report.html", title="blocks")


@pytest.fixture(params=["blocks_report", "competition_report", "gpt2_report"])
def any_report(request):
    return request.getfixturevalue(request.param)


def now(report) -> dict[str, Any]:
    """What is chosen, as the page says it."""
    page = report.page
    return {
        "open": page.locator("#flow svg.flow").get_attribute("data-open"),
        "group": page.locator("#group").input_value(),
        "kind": page.locator("#kind").input_value(),
        "count": page.locator("#count").input_value(),
        "path": page.locator("#paths h3").text_content(),
    }


@in_both
def test_it_opens_where_paths_part_and_from_the_earliest_parameters(blocks_report, open_report):
    report = open_report(blocks_report)
    tree = report.data["graph"]["modules"]
    opened = [tree["name"][int(n)] for n in now(report)["open"].split()]
    assert now(report)["group"].startswith("stem")
    assert "block0" in opened  # all paths cross it, and part inside
    assert report.page.locator('#flow .part[data-name^="block0.inner"]').count()
    names = report.page.locator("#flow .skips text").all_text_contents()
    assert names
    assert all(name.startswith("around ") for name in names)


def test_paths_are_those_of_the_chosen_parameters_and_a_search_sees_all(gpt2_report, open_report):
    report = open_report(gpt2_report)
    names, starts = report.data["graph"]["parameters"]["name"], report.data["snapshots"][0]["paths"][FIRST]["starts"]
    listed = report.page.locator("#paths .pathlist button")
    for group in ("transformer.wte.weight", "transformer.h.11"):
        report.page.select_option("#group", group)
        said = listed.evaluate_all("all => all.map(b => b.dataset.path)")
        assert said
        assert all(path.startswith(group) for path in said)
        scalars = {(n, *i) for n, i in zip(starts["leaf"], starts["index"], strict=True) if names[n].startswith(group)}
        assert len(said) == min(200, len(scalars))  # each once, though several examples have a path from it
    report.page.fill("#search-parameter", "transformer.h.2.mlp")
    assert "transformer.h.2.mlp" in listed.first.get_attribute("data-path")
    report.page.fill("#search-parameter", "no such name")
    assert listed.count() == 0
    assert report.page.locator("#paths table").count() == 0


def test_steps_that_change_nothing_are_folded(gpt2_report, open_report):
    report = open_report(gpt2_report)
    rows = report.page.locator("#paths tbody tr:not(.folded)")
    plain = rows.evaluate_all("all => all.map(r => [r.hidden, r.cells[r.cells.length - 3].textContent])")
    assert any(hidden for hidden, _ in plain)
    assert all(text in ("1", "−1") for hidden, text in plain if hidden)
    fold = report.page.locator("#paths .folded button").first
    fold.click()
    assert fold.get_attribute("aria-expanded") == "true"
    assert rows.evaluate_all("all => all.filter(r => r.hidden).length") < sum(hidden for hidden, _ in plain)


@in_both
def test_every_state_has_an_address(gpt2_report, open_report):
    report = open_report(gpt2_report)
    page = report.page
    assert "#" not in page.url
    page.select_option("#kind", "best")
    page.select_option("#group", "transformer.h.3")
    page.select_option("#count", "weighted_share")
    page.locator("#flow .part.opens.modules").first.locator("rect").click(force=True)
    page.locator("#paths .pathlist button").nth(1).click()
    there, address = now(report), page.url
    assert address.count("=") >= 5
    again = open_report(gpt2_report)
    assert now(again) != there
    again.requests.clear()
    again.page.goto(address)  # where the page is already, so that it loads itself again
    again.wait_for_value("#kind", "best")
    again.page.wait_for_selector("html[data-ready]", state="attached")
    assert now(again) == there
    again.page.goto(
        address.split("#")[0] + "#kind=best&of=nothing&open=99999&path=7x&step=9"
    )  # what is wrong is not taken
    assert now(again)["kind"] == "best"
    again.requests[:] = [gpt2_report.as_uri()]


def test_a_colour_means_the_same_at_every_step_and_for_every_group(competition_report, open_report):
    report = open_report(competition_report)
    page = report.page
    legend = "#flow .legend text"
    seen = set()
    for step in range(len(report.data["snapshots"])):
        page.locator("#step").evaluate("(e, n) => { e.value = n; e.dispatchEvent(new Event('input')); }", step)
        seen.add(tuple(page.locator(legend).all_text_contents()))
    assert len(seen) == 1


@in_both
def test_words_are_explained(blocks_report, open_report):
    report = open_report(blocks_report)
    word = report.page.locator("#influence dfn", has_text="Dead")
    word.focus()
    assert "nothing trains it" in report.page.locator(".tip").text_content()


def test_the_headline_says_what_it_speaks_of_where_the_views_show_another(gpt2_report, competition_report, open_report):
    report = open_report(gpt2_report)
    line = report.page.locator("header .moment")
    assert not line.is_visible()
    report.page.select_option("#example", "1")
    report.page.select_option("#kind", "best")
    said = "The views below show example 1, best paths. These sentences are of all examples, of greedy paths."
    assert line.text_content() == said
    report = open_report(competition_report)
    first, last = (report.data["snapshots"][n]["step"] for n in (0, -1))
    report.page.locator("#step").focus()
    report.page.keyboard.press("Home")
    said = report.page.locator("header .moment").text_content()
    assert said.startswith(f"The views below show step {first}. These sentences are of step {last}, ")


def test_colours_are_explained_before_they_are_pointed_at(blocks_report, open_report):
    report = open_report(blocks_report)
    for view in ("joins", "influence"):
        legend = report.page.locator(f"#{view} .difference")
        assert legend.text_content().startswith("Share of paths: 0%")
        assert legend.locator(".ramp span").count() == 11


def test_no_view_without_something_to_show(open_report, tmp_path):
    model = nn.Linear(3, 1)
    with record(model) as tape:
        loss = model(torch.zeros(2, 3)).square().mean() * 0
    report = open_report(tape.trace(loss).report(tmp_path / "r.html"))
    assert report.page.locator("#paths, #joins").count() == 0  # there is no path at all
    links = report.page.locator("nav .links a").evaluate_all("all => all.map(a => a.hash.slice(1))")
    assert links == report.page.locator("section").evaluate_all("all => all.map(s => s.id)")


@in_both
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(any_report, open_report, scheme):
    report = open_report(any_report, color_scheme=scheme, bypass_csp=True)
    found = Axe().run(report.page, options=RULES).response["violations"]
    assert not found, [(v["id"], v["nodes"][0]["target"], v["nodes"][0]["failureSummary"]) for v in found]


@in_both
def test_no_name_lies_on_another(any_report, open_report):
    report = open_report(any_report)
    for width in WIDTHS:
        report.page.set_viewport_size({"width": width, "height": 900})
        report.page.wait_for_timeout(100)
        assert report.page.evaluate("document.documentElement.scrollWidth") <= width
        for texts in ("#flow .part .name, #flow .skips text", "#flow .legend text", "#influence .heat .row"):
            report.assert_apart(texts)


@in_both
def test_the_steps_stay_in_reach_on_a_phone(competition_report, open_report):
    report = open_report(competition_report)
    report.page.set_viewport_size({"width": 390, "height": 800})
    report.page.locator("#provenance").scroll_into_view_if_needed()
    box = report.page.locator("#step").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 800
