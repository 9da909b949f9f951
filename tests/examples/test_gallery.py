"""Every program of the gallery runs, checks its own numbers, and draws its picture; and the pages list them all."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from loading import EXAMPLES, example

from gradtrace import cli, gallery

DOCS = EXAMPLES.parent / "docs"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_program_runs_and_draws(name, tmp_path, capsys):
    module, picture = example(name), tmp_path / "picture.svg"
    module.main(str(picture))
    assert len(capsys.readouterr().out.splitlines()) > 2
    assert len(list(ElementTree.parse(picture).iter())) > 30
    assert "assert " in Path(module.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_may_be_left_out(name):
    inspect.signature(example(name).main).bind()


def test_the_command_lists_and_runs_them(capsys, tmp_path):
    assert cli.main(["gallery"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if re.match(r"\w", line)]
    assert [name for name in listed if name in NAMES] == NAMES
    assert cli.main(["gallery", "two_paths", "--picture", str(tmp_path / "p.png")]) == 0
    assert "2 paths" in capsys.readouterr().out
    assert (tmp_path / "p.png").exists()


def test_what_is_not_there_is_said(capsys, tmp_path, monkeypatch):
    assert cli.main(["gallery", "three_paths"]) == 2
    assert "no program 'three_paths' in the gallery; there are attention_alignment, auto" in capsys.readouterr().err
    (tmp_path / "needy.py").write_text('"""Needs something."""\n\nimport no_such_package\n')
    (tmp_path / "plain.py").write_text('"""Draws nothing."""\n\n\ndef main():\n    pass\n')
    monkeypatch.setattr(gallery, "PLACES", (tmp_path,))
    assert cli.main(["gallery", "needy"]) == 2
    assert "needy needs no_such_package: pip install 'gradtrace[examples]'" in capsys.readouterr().err
    assert cli.main(["gallery", "plain", "--picture", "p.png"]) == 2
    assert "plain draws no picture" in capsys.readouterr().err


def numbered(label: str, numbers: range) -> set[str]:
    return {label.format(n) for n in numbers}


PARTS = {  # what the texts number
    *numbered("Figure 11.{}", range(1, 18)),
    *numbered("Equation 11.{}", range(1, 19)),
    *numbered("§ 11.{}", range(1, 8)),
    *numbered("exercise {}", range(1, 26)),
    *numbered("Equation 3.{}", range(1, 11)),
    *numbered("§ 3.{}", range(1, 4)),
    *numbered("Equation 1.{}", range(1, 8)),
    *numbered("§ 1.{}", range(1, 5)),
    *(f"§ 11.{n}" for n in ("2.1", "3.1", "3.2", "3.3", "3.4", "3.4.1", "3.5", "3.5.1", "3.6", "4.1", "4.2", "4.3")),
    *("Table 11.1", "Table 11.2", "Problem 11.2.1", "Problem 11.2.2", "Definition 11.2.1", "Lemma 11.3.1"),
    *("Figure 3.1", "Figure 3.2", "Algorithm 1"),
}


def test_the_map_has_every_part_of_the_texts_once_and_every_program():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.split("| text | part |")[1].splitlines()[2:] if "|" in line]
    parts = [part for _, listed, _ in rows for part in listed.split("; ")]
    assert len(parts) == len(set(parts))
    assert set(parts) >= PARTS
    assert {p for p in parts if re.search(r"\d", p)} - PARTS <= {"Value of ∂R/∂w1", "Value of ∂R/∂w0"}
    named = {name for _, _, where in rows for name in re.findall(r"`(\w+)\.py`", where)}
    assert named == set(NAMES)
    assert all("`" in where or where.startswith("none: ") for _, _, where in rows)


def test_the_pages_name_every_program_and_no_other():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(\.\./examples/(\w+)\.py\)", page)) == set(NAMES)
    for text in (page, (DOCS / "errata.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"`(\w+)\.py`", text)) <= set(NAMES)
