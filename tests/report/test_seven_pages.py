"""The pages of seven models in a browser: what they say first, and that nothing lies on another."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsers import in_both
from loading import EXAMPLES

from gradtrace.cli import main

NAMES = sorted(path.stem for path in (EXAMPLES / "pages").glob("*.py"))
WIDTHS = (390, 800, 1280)
LARGEST = 5_000_000  # bytes
TEXTS = ("#flow .part .name, #flow .skips text", "#flow .legend text", "#influence .heat .row", "#joins th, #joins td")


@pytest.fixture(scope="module", params=NAMES)
def page(request, tmp_path_factory) -> Path:
    """One of the pages, built."""
    if request.param in ("bert", "gpt2"):
        pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp(request.param)
    assert main(["trace", f"{EXAMPLES / 'pages' / request.param}.py:build", "--out", str(folder)]) == 0
    return folder / "report.html"


@pytest.mark.full
@in_both
def test_a_page_says_it_at_once_and_nothing_overlaps(page, open_report):
    assert page.stat().st_size < LARGEST
    report = open_report(page)  # how fast, benchmarks/opening.py measures
    headline = report.page.locator(".headline p").first
    assert headline.text_content().rstrip(".") in "".join(f["text"] for f in report.data["snapshots"][0]["findings"])
    assert headline.bounding_box()["y"] < 300
    assert report.page.locator("#joins table").count() >= 1
    assert report.page.locator("#flow .part.run").count() >= 1  # what everything crosses is one node
    first, joined = report.data["snapshots"][0]["flows"][0], report.data["snapshots"][0]["joins"][0]
    assert first["total"] == joined["paths"]  # headline, joins and flow speak of the same parameters
    for width in WIDTHS:
        report.page.set_viewport_size({"width": width, "height": 900})
        report.page.wait_for_timeout(100)
        assert report.page.evaluate("document.documentElement.scrollWidth") <= width
        for texts in TEXTS:
            report.assert_apart(texts)
