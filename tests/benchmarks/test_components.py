"""The table of components: certified, tried, what is done is not done again; and the docs have its last one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from gradtrace.experiments.components import COMPONENTS
from gradtrace.experiments.tasks import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("components_benchmark", ROOT / "benchmarks" / "components.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_goes_on_where_it_stopped(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in (script.PAGE, script.DONE):
        path.parent.mkdir(parents=True)
    script.PAGE.write_text(f"before\n{script.START}\nold\n{script.END}\nafter\n", encoding="utf-8")
    few = ["--components", "mlp", "--samples", "32"]
    script.main([*few, "--tasks", "counting"])
    script.main([*few, "--tasks", "counting,copy"])
    done = json.loads(script.DONE.read_text())
    assert done["proof"]["mlp"]["difference"] <= 1
    assert done["proof"]["mlp"]["alone"] < 1e-9
    assert set(done["solved"]) == {"mlp counting", "mlp copy"}
    assert capsys.readouterr().out.count("mlp on ") == 2
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.startswith("before\n")
    assert page.endswith(f"{script.END}\nafter\n")
    assert "| mlp | 1,072 |" in page


def test_the_page_has_every_component_and_each_solves_a_task_alone(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = json.loads(script.DONE.read_text())
    for name in COMPONENTS:
        proof = done["proof"][name]
        assert proof["fallbacks"] == {}
        assert proof["difference"] <= proof["tolerance"]
        assert proof["alone"] < 1e-9
        assert any(done["solved"][f"{name} {task}"]["samples"] for task in TASKS), name
    samples = int(script.parser().get_default("samples"))
    assert script.table(done, samples).split("\n", 1)[1] in script.PAGE.read_text(encoding="utf-8")


def test_the_page_says_when_a_task_is_solved():
    page = (ROOT / "docs" / "components.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")]
        for line in page.split("\n")
        if "|" in line
    }
    for name, task in TASKS.items():
        assert rows[f"`{name}`"][-2] == f"{100 * task.solved:.0f} %"
        short, long = task.lengths
        shown = "".join(c for c in rows[f"`{name}`"][4] if c.isdigit() or c == "–").strip("–")
        assert shown == (str(long) if short == long else f"{short}–{long}")
