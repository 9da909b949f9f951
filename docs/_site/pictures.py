"""Picture pages of seven models and of the demo for the documents, and put there what they say: `make pictures`.

Reads build/pages/NAME/report.html and demo/report.html; needs Chromium, playwright and pillow, as the tests do.
"""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1]
PAGES = DOCS.parent / "build" / "pages"
SIZE = {"width": 1280, "height": 900}
WHOLE = {"width": 1280, "height": 1060}  # where the demo's flow is on the first screen
COLOURS, SENTENCES = 48, 4
VIEWS = {  # docs/report-NAME.png: a page, and a view of it, or its first screen
    "flow": ("demo", ""),
    "influence": ("demo", "influence"),
    "paths": ("demo", "paths"),
    "training": ("demo", "training"),
    "ablation": ("demo", "ablation"),
    "provenance": ("demo", "provenance"),
    "joins": ("resnet", "joins"),
    "gpt2": ("gpt2", "flow"),
    "lengths": ("lengths", "lengths"),
}


def pictured(seen: Any) -> bytes:
    """Take a page's first screen, or an element, as a PNG of few colours."""
    taken = Image.open(io.BytesIO(seen.screenshot())).convert("RGB")
    out = io.BytesIO()
    taken.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def opened(browser: Any, name: str) -> Any:
    """Open a model's page, or the demo's."""
    page = browser.new_page(viewport=SIZE, color_scheme="light")
    folder = DOCS.parent / "demo" if name == "demo" else PAGES / name
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    page.wait_for_timeout(200)
    return page


def said(text: str, name: str, sentences: list[str]) -> str:
    """Put what a page says between its marks."""
    marks = re.compile(rf"(<!-- says {name} -->\n).*?(<!-- said -->)", re.DOTALL)
    quoted = "\n>\n".join(f"> {sentence}" for sentence in sentences).replace("*", r"\*").replace("<0", r"\<0")
    return marks.sub(lambda found: f"{found[1]}\n{quoted}\n\n{found[2]}", text)


def main() -> None:
    """Picture every page that is named in the document."""
    document = DOCS / "seven-models.md"
    text = document.read_text(encoding="utf-8")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name in re.findall(r"<!-- says (\w+) -->", text):
            page = opened(browser, name)
            (DOCS / f"seven-{name}.png").write_bytes(pictured(page))
            text = said(text, name, page.locator(".headline p").all_text_contents()[:SENTENCES])
            page.close()
        for name, (of, view) in VIEWS.items():
            page = opened(browser, of)
            page.set_viewport_size(WHOLE)
            (DOCS / f"report-{name}.png").write_bytes(pictured(page.locator(f"#{view}") if view else page))
            page.close()
        browser.close()
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
