"""How long reports take to open, in Chromium and Firefox: from the address to the first picture of a page in use.

Beside them stands a page without anything, opened in turn: what a browser takes by itself on this machine. The least
and the median of some openings, in seconds by the wall's clock, and the size of the file.

    make pages && python benchmarks/opening.py       # build/pages/*/report.html
    python benchmarks/opening.py a.html b.html
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, machine, save
from playwright.sync_api import sync_playwright

NAME = "opening"
BROWSERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "chromium": (("chromium", "chromium-browser"), {"args": ["--no-sandbox", "--disable-gpu"]}),
    "firefox": (("firefox-esr", "firefox"), {"channel": "moz-firefox"}),
}
EMPTY = "<!doctype html><html data-ready><title>nothing</title><p>nothing</p></html>"


def once(browser: Any, file: Path) -> float:
    """Open a page in a tab of its own; give the seconds."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    began = time.perf_counter()
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    taken = time.perf_counter() - began
    page.close()
    return taken


def measure(name: str, files: Sequence[Path], repeats: int) -> dict[str, list[float]]:
    """Open all pages in turn, again and again, in one browser; the first round warms it up."""
    programs, options = BROWSERS[name]
    program = next(filter(None, map(shutil.which, programs)))
    taken: dict[str, list[float]] = {str(file): [] for file in files}
    with sync_playwright() as playwright:
        browser = getattr(playwright, name).launch(executable_path=program, **options)
        for number in range(repeats + 1):
            for file in files:
                seconds = once(browser, file)
                if number:
                    taken[str(file)].append(seconds)
        browser.close()
    return taken


def main() -> None:
    """Measure, print the table, write it as Markdown and JSON."""
    parser = argparse.ArgumentParser(description="Measure how long reports take to open.")
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    files = given.files or sorted(Path("build/pages").glob("*/report.html"))
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "nothing.html"
        empty.write_text(EMPTY)
        there = [n for n, (programs, _) in BROWSERS.items() if any(map(shutil.which, programs))]
        taken = {name: measure(name, [empty, *files], given.repeats) for name in there}
        titles = {str(f): "an empty page" if f is empty else f"{f.parent.name}/{f.name}" for f in (empty, *files)}
        sizes = {str(f): f.stat().st_size for f in (empty, *files)}
    lines = [f"{machine()['cpu']}; least, and median, of {given.repeats} openings.", ""]
    lines += [f"| page | MB | {' | '.join(there)} |", f"|---|--:|{'--:|' * len(there)}"]
    for file, title in titles.items():
        cells = [f"{min(taken[n][file]):.2f} s, {statistics.median(taken[n][file]):.2f} s" for n in there]
        lines.append(f"| {title} | {sizes[file] / 1e6:.2f} | {' | '.join(cells)} |")
    rows = {title: {n: taken[n][file] for n in there} for file, title in titles.items()}
    save(given.out, NAME, "\n".join(lines) + "\n", {"machine": machine(), "seconds": rows})


if __name__ == "__main__":
    main()
