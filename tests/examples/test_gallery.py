"""Every program of the gallery runs, checks its own numbers, and draws its picture; and the pages list them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from loading import EXAMPLES, example

from gradtrace import cli, gallery

DOCS = EXAMPLES.parent / "docs"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
TRAINED = {"residual_spectrum"}  # takes minutes; its own test trains a smaller one


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINED])
def test_a_program_runs_and_draws(name, tmp_path, capsys):
    module, picture = example(name), tmp_path / "picture.svg"
    draws = "picture" in module.main.__code__.co_varnames[: module.main.__code__.co_argcount]
    module.main(*([str(picture)] if draws else []))
    assert len(capsys.readouterr().out.splitlines()) > 2
    assert picture.exists() == draws
    assert "assert " in Path(module.__file__).read_text(encoding="utf-8") or name == "hmm"  # whose test has its numbers


def test_the_command_lists_and_runs_them(capsys, tmp_path):
    assert cli.main(["gallery"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if re.match(r"\w", line)]
    assert [name for name in listed if name in NAMES] == NAMES
    assert cli.main(["gallery", "two_paths", "--picture", str(tmp_path / "p.png")]) == 0
    assert "2 paths" in capsys.readouterr().out
    assert (tmp_path / "p.png").exists()


def test_what_is_not_there_is_said(capsys, tmp_path, monkeypatch):
    assert cli.main(["gallery", "three_paths"]) == 2
    assert "no program 'three_paths' in the gallery; there are boltzmann, cycles" in capsys.readouterr().err
    (tmp_path / "needy.py").write_text('"""Needs something."""\n\nimport no_such_package\n')
    (tmp_path / "plain.py").write_text('"""Draws nothing."""\n\n\ndef main():\n    pass\n')
    monkeypatch.setattr(gallery, "PLACES", (tmp_path,))
    assert cli.main(["gallery", "needy"]) == 2
    assert "needy needs no_such_package: pip install 'gradtrace[examples]'" in capsys.readouterr().err
    assert cli.main(["gallery", "plain", "--picture", "p.png"]) == 2
    assert "plain draws no picture" in capsys.readouterr().err


def test_the_pages_name_every_program_and_no_other():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(\.\./examples/(\w+)\.py\)", page)) == set(NAMES)
    for text in (page, (DOCS / "errata.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"`(\w+)\.py`", text)) <= set(NAMES)
