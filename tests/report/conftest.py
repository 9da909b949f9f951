"""A browser, and reports of real runs: a short competition, a GPT-2 of twelve layers, a model with hostile names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import OPTIONS, PROGRAMS, program

from gradtrace import Trace, record
from gradtrace.cli import main
from gradtrace.experiments.compete import compete
from gradtrace.queries.forest import FIRST
from gradtrace.report.document import of_results
from gradtrace.report.page import render

SHORT = {
    "components": ("rnn", "lstm", "gru"),
    "steps": 30,
    "hidden": 12,
    "bptt": 10,
    "batch": 8,
    "trace_every": 10,
    "trace_examples": 3,
    "eval_every": 6,
    "vocabulary": 200,
}


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Any]]:
    """Start browsers, each once."""
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {}
    with sync_playwright() as playwright:

        def start(name: str) -> Any:
            if name not in found:
                if (path := program(name)) is None:
                    why = f"the report's tests need {name}: apt-get install {PROGRAMS[name][0]}"
                    pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
                found[name] = getattr(playwright, name).launch(executable_path=path, **OPTIONS[name])
            return found[name]

        yield start
        for opened in found.values():
            opened.close()


@pytest.fixture
def browser(request, started) -> Any:
    """Chromium, or what a test in both browsers asks for."""
    return started(getattr(request, "param", "chromium"))


class Opened:
    """A report in a page: what it asked for and complained of, and what its data say."""

    def __init__(self, page: Any, file: Path, scheme: str | None = None) -> None:
        self.page, self.file = page, file
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        if scheme and not page.evaluate("s => matchMedia(`(prefers-color-scheme: ${s})`).matches", scheme):
            page.locator("nav button", has_text="Light / dark").click()  # Firefox takes no scheme from outside
        page.wait_for_timeout(100)
        self.data = json.loads(page.locator("#data").text_content())

    def flow(self, snapshot: int = -1, of: str | None = None, kind: str = FIRST) -> dict[str, Any]:
        flows = self.data["snapshots"][snapshot]["flows"]
        return next(f for f in flows if f["kind"] == kind and of in (None, f["of"]))

    def wait_for_value(self, selector: str, value: str) -> None:
        """A control shows a value soon. A function to wait for would be evaluated, which a page's policy forbids."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_value(value)

    def assert_apart(self, selector: str) -> None:
        """No two of some texts lie on one another, but for a pixel or two of their boxes."""
        boxes = self.page.locator(selector).evaluate_all(
            "all => all.map(t => { const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
        )
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 2 or b[3] <= a[1] + 2
                assert apart, (selector, self.page.viewport_size, a, b)

    def assert_quiet(self) -> None:
        """Nothing was said on the console, and nothing was fetched but the file itself."""
        assert self.complaints == []
        asked = {url for url in self.requests if not url.startswith("blob:")}
        assert asked <= {self.file.as_uri()}  # which Firefox does not tell


@pytest.fixture
def open_report(browser) -> Iterator[Any]:
    """Open a report; what it did is checked when the test is over."""
    contexts, reports = [], []

    def open_(file: Path, **options: Any) -> Opened:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options))
        reports.append(Opened(contexts[-1].new_page(), file, options.get("color_scheme")))
        return reports[-1]

    yield open_
    for report in reports:
        report.assert_quiet()
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def competition(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A short competition: its folder, and what results.json says."""
    folder = tmp_path_factory.mktemp("competition")
    compete(SHORT, folder)
    return folder, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="session")
def competition_report(competition) -> Path:
    folder, results = competition
    path = folder / "report.html"
    path.write_text(render(of_results(results, {"seconds": 12.5, "peak_memory": "345 MiB"})), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def gpt2() -> tuple[Trace, list[list[str]]]:
    """A trace of a GPT-2 of twelve layers, narrow, and its tokens."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=12, n_embd=64, n_head=4, vocab_size=1000, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    config.loss_type = "ForCausalLM"
    model = transformers.GPT2LMHeadModel(config).eval()
    words = torch.randint(1000, (2, 16))
    with record(model, examples=words) as tape:
        loss = model(words, labels=words).loss
    return tape.trace(loss, check=True), [[f"word{i}" for i in row] for row in words.tolist()]


@pytest.fixture(scope="session")
def gpt2_report(gpt2, tmp_path_factory) -> Path:
    trace, tokens = gpt2
    return trace.report(tmp_path_factory.mktemp("gpt2") / "report.html", title="GPT-2, twelve layers", tokens=tokens)


@pytest.fixture(scope="session")
def idle_report(tmp_path_factory) -> Path:
    """A stem, and a block whose inner part is so weak that no strongest path takes it."""
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, x):
            return x + 1e-3 * self.inner(x)

    parts = {"stem": torch.nn.Linear(3, 4), "block": Block(), "head": torch.nn.Linear(4, 1)}
    model, x = torch.nn.Sequential(), torch.randn(5, 3)
    for name, part in parts.items():
        model.add_module(name, part)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    return tape.trace(loss).report(tmp_path_factory.mktemp("idle") / "report.html", title="idle")


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!--<script>",
    "\u2028];alert(3)//",
    "javascript:alert(4)",
    '"><svg onload=alert(5)>',
)


@pytest.fixture
def hostile_names() -> tuple[str, ...]:
    return HOSTILE


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory) -> Path:
    """A model whose modules are called what an attacker would call them."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in HOSTILE})
    x = torch.randn(3, 4)
    with record(model, examples=x) as tape:
        y = x
        for layer in model.values():
            y = y + layer(y).tanh()
        loss = y.square().mean()
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    tokens = [["<b>bold</b>"] * 4] * 3
    asked = {"tokens": tokens, "semirings": ("entropy", "graded", "power:8"), "components": list(HOSTILE)}
    return tape.trace(loss).report(path, title="</title><script>alert(6)</script>", **asked)


RESIDUAL = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(4))
        self.unused = nn.Linear(8, 1)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h) + 0.0 * self.unused(h)

def build():
    torch.manual_seed(0)
    batches = [torch.randn(5, 6) for _ in range(2)]
    return Residual(), batches, lambda model, x: model(x).square().mean()
"""
ASKED = "entropy,power:8,power:32,graded,graded:abssum,graded:max,graded:2:count,topk:2,through"


@pytest.fixture(scope="session")
def residual(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A residual network, asked a lot on the command line: its report, and what results.json says."""
    folder = tmp_path_factory.mktemp("residual")
    (folder / "model.py").write_text(RESIDUAL)
    by = ",".join(["stem", *(f"blocks.{i}" for i in range(4)), "head"])
    options = ["--semiring", ASKED, "--components", by, "--batches", "2", "--out", str(folder)]
    assert main(["trace", f"{folder / 'model.py'}:build", *options]) == 0
    return folder / "report.html", json.loads((folder / "results.json").read_text())
