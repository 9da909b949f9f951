"""docs/keeping.md does what it says: every block runs, in order, and prints what stands below it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent.parent / "docs" / "keeping.md").read_text(encoding="utf-8")


def test_every_block_prints_what_stands_below_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```python") > 3
    for code, text in blocks:
        exec(code, names)
        printed = capsys.readouterr().out
        expected = re.sub(
            r"\d+\\\.\d+", r"\\d+\\.\\d+", re.escape(text.rstrip("\n"))
        )  # another torch trains a bit otherwise
        assert re.fullmatch(expected, printed.rstrip("\n"), re.DOTALL), printed
    assert (tmp_path / "compared.html").stat().st_size > 10_000
