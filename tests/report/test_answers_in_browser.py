"""What semirings said, in a browser: views that are there if they were asked for, and the figures of results.json.

As in `test_browser`, a report that says something on the console or fetches anything fails its test.
"""

from __future__ import annotations

import csv
import io
import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import torch

from gradtrace import component, record
from gradtrace.report.words import percent

VIEWS = ("entropy", "lengths", "gap")


@pytest.fixture
def report(residual, open_report):
    return open_report(residual[0])


def answer(residual, semiring: str, batch: int = 0) -> dict[str, Any]:
    return next(a for a in residual[1]["semirings"] if (a["semiring"], a["batch"]) == (semiring, batch))


def measures(report, where: str) -> list[dict[str, Any]]:
    """What each bar says: its data, its words, and its size."""
    return report.page.locator(f"{where} .measure").evaluate_all(
        """all => all.map(m => ({...m.dataset, said: m.getAttribute('aria-label'),
            text: m.querySelector('.value').textContent, width: m.querySelector('.solid')?.width.baseVal.value,
            height: m.querySelector('.solid')?.height.baseVal.value}))"""
    )


def number(text: str | None) -> float | None:
    return None if text is None else float(text)


def saved(report, view: str) -> list[dict[str, str]]:
    with report.page.expect_download() as download:
        report.page.locator(f"#{view} [data-save=csv]").click()
    return list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))


def links(page: Any) -> list[str]:
    return page.locator("nav .links a").evaluate_all("all => all.map(a => a.hash.slice(1))")


def sections(page: Any) -> list[str]:
    return page.locator("main > section").evaluate_all("all => all.map(s => s.id)")


def test_views_are_there_only_if_they_were_asked_for(gpt2_report, competition_report, open_report):
    for file in (gpt2_report, competition_report):
        page = open_report(file).page
        assert page.locator(", ".join(f"#{view}" for view in VIEWS)).count() == 0
        assert links(page) == sections(page)


@pytest.mark.parametrize(("asked", "view"), [("entropy", "entropy"), ("graded:max", "lengths"), ("power:4", "gap")])
def test_a_trace_in_python_carries_what_it_is_asked(asked, view, open_report, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with record(model) as tape:
        loss = model(torch.randn(5, 3)).square().mean()
    trace = tape.trace(loss)
    for semirings in (asked, [asked, "count", "topk:2", "signedmax", "through"]):
        page = open_report(trace.report(tmp_path / "r.html", semirings=semirings)).page
        assert [v for v in VIEWS if page.locator(f"#{v}").count()] == [view]
        assert links(page) == sections(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_renders(residual, open_report, scheme):
    page = open_report(residual[0], color_scheme=scheme).page
    for view in VIEWS:
        section = page.locator(f"#{view}")
        assert section.locator("h2").is_visible()
        assert len(section.locator(".how").text_content()) > 80
        assert section.locator(".how em").text_content()
        assert section.locator(".axis").count() >= 2
    ink = page.locator("#entropy .solid").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == {"light": "rgb(11, 95, 165)", "dark": "rgb(124, 192, 255)"}[scheme]


@pytest.mark.parametrize("grain", ["layers", "rows"])
@pytest.mark.parametrize("batch", [0, 1])
def test_entropy_on_screen_is_that_of_the_results(residual, report, grain, batch):
    report.page.select_option("#entropy-rows", grain)
    report.page.select_option("#entropy-batch", str(batch))
    rows = answer(residual, "entropy", batch)[grain]
    found = measures(report, "#entropy")
    assert [m["name"] for m in found] == [r["layer" if grain == "layers" else "parameter"] for r in rows]
    unit = max(m["width"] / r["mean"] for m, r in zip(found, rows, strict=True) if r["live"])
    for m, r in zip(found, rows, strict=True):
        if not r["live"]:
            assert (m["text"], "mean" in m) == ("no path", False)
            continue
        assert (number(m["mean"]), number(m["max"])) == (r["mean"], r["max"])
        assert m["text"].startswith(f"{r['mean']:.1f} bits, ")
        assert m["width"] == pytest.approx(max(1, unit * r["mean"]), abs=0.01)  # bars begin at 0 and compare
        if r["mean"] < 16:
            effect = float(m["text"].split(", ", 1)[1].split(" ")[0].replace(",", ""))
            assert effect == pytest.approx(2 ** r["mean"], rel=0.005)


def test_paths_in_effect_have_their_own_axis(report):
    bits, effect = (
        report.page.locator("#entropy .across")
        .nth(i)
        .locator("text:not(.axis)")
        .evaluate_all("all => all.map(t => [Number(t.getAttribute('x')), t.textContent])")
        for i in (0, 1)
    )
    (origin, _), (end, most) = bits[0], bits[-1]
    unit = (end - origin) / float(most)
    assert len(effect) > 2
    for x, text in effect:
        power = 0 if text == "1" else int(text.removeprefix("10").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
        assert x == pytest.approx(origin + unit * power * math.log2(10))


def small(said: str, share: str) -> bool:
    """Tell whether a share is said; one that rounds to nothing is said to be little, not nothing."""
    return share in said or (share.lstrip("−") == "0.0%" and (">−0.1%" if share[0] == "−" else "<0.1%") in said)


def bars(row: dict[str, Any]) -> tuple[list[float], str]:
    """What a panel draws of a row, and what it is called."""
    if "strongest" in row:
        return row["strongest"], "Max"
    return (row["along"], "Signed") if "along" in row else (row["spectrum"], "")


@pytest.mark.parametrize("name", ["stem", "blocks.1.2", "blocks.0.0.weight", "head.bias"])
def test_path_lengths_on_screen_are_those_of_the_results(residual, report, name):
    for batch in (1, 0):
        report.page.select_option("#lengths-batch", str(batch))
        report.page.select_option("#lengths-of", name)
        for semiring, title in (("graded", "Signed"), ("graded:abssum", "Absolute"), ("graded:max", "Max")):
            said = answer(residual, semiring, batch)
            row = next(r for r in [*said["layers"], *said["rows"]] if name in (r.get("layer"), r.get("parameter")))
            panel = f'#lengths [data-semiring="{semiring}"]'
            wanted = bars(row)[0][:-1]  # nothing crosses more than all
            found = measures(report, panel)
            assert [number(m["value"]) for m in found] == wanted
            assert report.page.locator(f"{panel} .title").text_content().startswith(f"{title}: ")
            assert report.page.locator(f"{panel} .axis").first.text_content() == "components crossed, of 6"
            heights = [m["height"] for m in found]
            unit = max(heights) / max(map(abs, wanted))
            assert heights == pytest.approx([unit * abs(value) for value in wanted], abs=0.01)
            if semiring == "graded":
                assert [number(m.get("size")) for m in found] == row["spectrum"][:-1]
            if semiring != "graded:max":
                for m, value in zip(found, wanted, strict=True):
                    share = percent(value / sum(wanted)).replace("-", "−")
                    assert value == 0 or small(m["said"], share)


def test_what_crosses_more_than_was_kept_apart_is_the_last_bar(residual, report):
    panel = '#lengths [data-semiring="graded:2:count"]'
    row = next(r for r in answer(residual, "graded:2:count")["layers"] if r["layer"] == "stem")
    assert [number(m["value"]) for m in measures(report, panel)] == row["spectrum"]
    assert ">2" in report.page.locator(f"{panel} text").all_text_contents()
    assert report.page.locator(f"{panel} .title").text_content().startswith("Count: ")


def test_path_lengths_of_all_layers_are_in_the_table(residual, report):
    report.page.locator("#lengths summary").click()
    said = answer(residual, "graded")
    rows = (
        report.page.locator("#lengths table")
        .first.locator("tbody tr")
        .evaluate_all("all => all.map(r => [...r.cells].map(c => c.textContent))")
    )
    live = [r for r in said["layers"] if r["live"]]
    assert [row[0] for row in rows] == [r["layer"] for r in live]
    for row, r in zip(rows, live, strict=True):
        shares = [
            percent(a / sum(r["along"])).replace("-", "−") if s else "–"
            for a, s in zip(r["along"], r["spectrum"], strict=True)
        ]
        assert all(small(cell, share) for cell, share in zip(row[1:], shares, strict=True))


def test_rounding_is_not_drawn_large_and_a_part_against_the_gradient_points_down(open_report, tmp_path):
    w = torch.tensor(2.0, requires_grad=True)
    with record(names={"w": w}) as tape:
        with component("gate"):
            through = 3 * w
        loss = through - 1.5 * w
    path = tape.trace(loss).report(tmp_path / "r.html", semirings=["graded", "power:300"])
    report = open_report(path)
    against, along = report.page.locator("#lengths .measure").evaluate_all(
        """all => all.map(m => [...m.querySelectorAll('.solid, .behind')]
            .map(r => [r.y.baseVal.value, r.height.baseVal.value]))"""
    )
    zero = along[0][0] + along[0][1]
    assert all(y == pytest.approx(zero) for y, _ in against)  # both hang down from 0
    assert [height for _, height in against] == pytest.approx([along[0][1] / 2] * 2)
    assert [m["text"] for m in measures(report, "#lengths")] == ["−100.0%", "200.0%"]
    (gap,) = measures(report, "#gap")
    assert gap["text"] == "<0.001 bits, ×1"
    assert gap["width"] < 20


def test_a_layer_that_no_path_goes_around_says_so(report):
    assert "way around" not in report.page.locator("#lengths .note").text_content()  # it begins with the most lengths
    report.page.select_option("#lengths-of", "head")
    assert "cross exactly 1 of these" in report.page.locator("#lengths .note").text_content()


@pytest.mark.parametrize("grain", ["layers", "rows"])
@pytest.mark.parametrize("bound", ["power:8", "power:32"])
def test_the_gap_on_screen_is_that_of_the_results(residual, report, grain, bound):
    report.page.select_option("#gap-rows", grain)
    report.page.select_option("#gap-bound", bound)
    rows = answer(residual, bound)[grain]
    found = measures(report, "#gap")
    assert any(bound in text for text in report.page.locator("#gap .axis").all_text_contents())
    for m, r in zip(found, rows, strict=True):
        if not r["live"]:
            assert m["text"] == "no path"
            continue
        figures = r["log2_strongest"], r["log2_max"], r["gap"]
        assert tuple(number(m[key]) for key in ("strongest", "upper", "gap")) == figures
        bits = "<0.001" if r["gap"] < 0.0005 else f"{r['gap']:.3f}"
        times, factor = m["text"].split(" bits, ×")
        assert times == bits
        assert float(factor) == pytest.approx(2 ** r["gap"], rel=1e-3)
        for log2 in figures[:2]:
            assert f"2^{log2:.2f}".replace("-", "−") in m["said"]


def test_pointing_and_focus_give_the_figures(residual, report):
    row = next(r for r in answer(residual, "entropy")["layers"] if r["layer"] == "blocks.2.0")
    bar = report.page.locator('#entropy .measure[data-name="blocks.2.0"]')
    for reach in (bar.hover, bar.focus):
        report.page.mouse.move(1, 1)
        reach()
        said = report.page.locator(".tip").text_content()
        assert f"mean {row['mean']:.2f} bits" in said
        assert f"median {row['median']:.2f}, largest {row['max']:.2f} bits" in said
        assert f"{row['live']} of {row['scalars']} scalars have a path" in said
        bar.blur()


def test_everything_that_acts_can_be_reached_by_tab(report):
    wanted = ", ".join(f"#{v} {e}" for v in VIEWS for e in ("button", "select", "summary", ".measure", ".scroll"))
    assert report.page.locator(wanted).evaluate_all("all => all.filter(e => e.tabIndex < 0).length") == 0
    report.page.locator("#gap-rows").focus()
    report.page.keyboard.press("ArrowDown")
    assert len(measures(report, "#gap")) == 22  # parameters


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_can_be_saved(report, view):
    with report.page.expect_download() as download:
        report.page.locator(f"#{view} [data-save=svg]").click()
    assert download.value.suggested_filename == f"gradtrace-{view}.svg"
    root = ET.fromstring(download.value.path().read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    fills = {e.get("fill") for e in root.iter("{http://www.w3.org/2000/svg}rect")}
    assert "rgb(11, 95, 165)" in fills  # what the style sheet says is written in


def test_saved_figures_are_those_of_the_results(residual, report):
    live = [r for r in answer(residual, "entropy")["layers"] if r["live"]]
    found = {r["name"]: r for r in saved(report, "entropy")}
    assert [float(found[r["layer"]]["mean entropy, bits"]) for r in live] == [r["mean"] for r in live]
    effects = [float(found[r["layer"]]["paths in effect at the mean"]) for r in live]
    assert effects == pytest.approx([2 ** r["mean"] for r in live])
    live = [r for r in answer(residual, "power:8")["layers"] if r["live"]]
    found = {r["name"]: r for r in saved(report, "gap")}
    assert [float(found[r["layer"]]["gap, bits"]) for r in live] == [r["gap"] for r in live]
    found = saved(report, "lengths")
    for semiring, column in (
        ("graded", "along the gradient"),
        ("graded:max", "strongest path"),
        ("graded:abssum", "size of the part"),
    ):
        row = next(r for r in answer(residual, semiring)["rows"] if r["parameter"] == "stem.bias")
        wanted = {"graded": "along", "graded:max": "strongest"}.get(semiring, "spectrum")
        cells = [float(r[column]) for r in found if (r["semiring"], r["name"]) == (semiring, "stem.bias")]
        assert cells == row[wanted]


def test_hostile_names_are_text(hostile_report, hostile_names, open_report):
    page = open_report(hostile_report).page
    for view in VIEWS:
        said = page.locator(f"#{view}").text_content()
        assert all(name in said for name in hostile_names)
        for bar in page.locator(f"#{view} .measure").all()[:6]:
            bar.focus()
            assert page.locator(".tip img, .tip script, .tip svg").count() == 0
        with page.expect_download() as download:
            page.locator(f"#{view} [data-save=svg]").click()
        tags = {e.tag.split("}")[1] for e in ET.fromstring(download.value.path().read_text(encoding="utf-8")).iter()}
        assert not tags & {"script", "img", "image", "foreignObject"}
    page.select_option("#lengths-of", hostile_names[1])
    assert hostile_names[1] in page.locator("#lengths .note").text_content()


def test_paper_gets_them_in_light_colours(residual, open_report):
    page = open_report(residual[0], color_scheme="dark").page
    page.emulate_media(media="print")
    for view in VIEWS:
        assert page.locator(f"#{view} svg.bars").is_visible()
        assert not page.locator(f"#{view} .controls").is_visible()
    assert page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"


def test_nothing_sticks_out_on_a_narrow_screen(report):
    report.page.set_viewport_size({"width": 420, "height": 800})
    report.page.wait_for_timeout(100)
    assert report.page.evaluate("document.documentElement.scrollWidth") <= 420
    assert report.page.locator("#lengths svg.bars").bounding_box()["width"] <= 420


@pytest.mark.parametrize("width", [1280, 420])
def test_labels_do_not_overlap(report, width):
    report.page.set_viewport_size({"width": width, "height": 800})
    report.page.wait_for_timeout(100)
    for view in VIEWS:
        boxes = report.page.locator(f"#{view} svg.bars text").evaluate_all(
            "all => all.filter(t => t.textContent).map(t => { const b = t.getBoundingClientRect();"
            " return [b.left, b.top, b.right, b.bottom, t.textContent]; })"
        )
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 2 or b[3] <= a[1] + 2
                assert apart, (view, a, b)


def test_results_of_an_older_version_have_no_such_views(residual, open_report, tmp_path):
    from gradtrace.report.document import of_results
    from gradtrace.report.page import render

    results = dict(residual[1])
    results["semirings"] = [{k: v for k, v in a.items() if k != "layers"} for a in results["semirings"]]
    for older in (results, {k: v for k, v in results.items() if k != "semirings"}):
        path = tmp_path / "older.html"
        path.write_text(render(of_results(older)), encoding="utf-8")
        assert open_report(path).page.locator(", ".join(f"#{view}" for view in VIEWS)).count() == 0
