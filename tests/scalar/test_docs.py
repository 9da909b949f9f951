"""docs/scalar.md does what it says: every block runs, in order, and prints what stands below it."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import networkx
import pytest

import gradtrace.scalar

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "scalar.md").read_text(encoding="utf-8")


def test_every_block_prints_what_stands_below_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```python")
    for code, text in blocks:
        exec(code, names)
        printed = capsys.readouterr().out
        expected = ".*".join(map(re.escape, text.rstrip("\n").split("…")))
        assert re.fullmatch(expected, printed.rstrip("\n"), re.DOTALL), printed
    assert (tmp_path / "tape.png").exists()
    for figure in ("3-1", "3-2", "11-6", "11-9"):
        assert texts_of((tmp_path / f"figure-{figure}.svg").read_text(encoding="utf-8"))
    shown, drawn = (path.read_text(encoding="utf-8") for path in (DOCS / "scalar-figure.svg", tmp_path / "figure.svg"))
    assert texts_of(shown) == texts_of(drawn)


MODULES = [f"gradtrace.scalar.{m.name}" for m in pkgutil.iter_modules(gradtrace.scalar.__path__)]


@pytest.mark.parametrize("name", ["gradtrace.scalar", *MODULES])
def test_examples_in_docstrings_print_what_they_say(name):
    names = vars(gradtrace.scalar) | {"networkx": networkx}
    assert doctest.testmod(importlib.import_module(name), extraglobs=names).failed == 0


def texts_of(svg: str) -> list[str]:
    """What a figure says; matplotlib draws letters as shapes, and says in a comment which text they are."""
    return re.findall(r"<!-- (.*?) -->", svg)


def test_the_texts_figures_take_less_than_ten_lines():
    drawn = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        for name in re.findall(r'"(figure[-\d]*)\.svg"', code):
            drawn[name] = len(code.splitlines())
    lines = {name: n - (name == "figure") for name, n in drawn.items()}  # that of Figure 11.1 begins with an import
    assert set(lines) == {"figure", "figure-3-1", "figure-3-2", "figure-11-6", "figure-11-9"}
    assert max(lines.values()) < 10


def test_every_public_function_is_on_the_page():
    functions = [n for n in gradtrace.scalar.__all__ if n[0].islower() and n not in ("crossing",)]
    for name in [*functions, "Graph", "MaxPlus", "MinPlus"]:
        assert re.search(rf"\b{name}\b", PAGE), name
