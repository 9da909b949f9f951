"""The pages do what they say: blocks run and print what stands below them, commands exist, links lead somewhere."""

from __future__ import annotations

import io
import re
import runpy
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages import DOCS, PAGES, ROOT, Block, anchors, blocks, links

from gradtrace import cli

OWN_TESTS = {"errors.md", "scalar.md", "howto-semiring.md"}  # tests/test_errors.py, scalar/ and semirings/test_docs.py
LANGUAGES = {"python", "text", "sh", "indented", "{toctree}", "{eval-rst}"}
PROGRAMS = {"gradtrace", "make", "pip", "python", "torchrun"}
NOTEBOOKS = sorted((DOCS / "tutorial").glob("*.py"))


def says(text: str, expected: str) -> bool:
    """Compare, where … stands for anything, and the spaces at the ends of lines for nothing."""
    lines = ["\n".join(line.rstrip() for line in t.strip("\n").splitlines()) for t in (text, expected)]
    return re.fullmatch(".*".join(map(re.escape, lines[1].split("…"))), lines[0], re.DOTALL) is not None


def run(block: Block, names: dict, where: str) -> str:
    """Run a block, and give what it says; one that begins with a file's name is a file, which later ones may use."""
    exec(compile(block.marks.get("before", ""), f"before {where}", "exec"), names)
    named = re.match(r"# (\w+\.py)\n", block.code)
    if named:
        Path(named[1]).write_text(block.code, encoding="utf-8")
    code = compile(block.code, named[1] if named else where, "exec")
    with redirect_stdout(io.StringIO()) as printed:
        if "raises" not in block.marks:
            exec(code, names)
            return printed.getvalue()
        with pytest.raises(Exception) as error:  # noqa: PT011 -- which one is asked below
            exec(code, names)
    assert type(error.value).__name__ == block.marks["raises"]
    return str(error.value)


def typed(block: Block) -> str:
    """Type commands of gradtrace that show what they print."""
    with redirect_stdout(io.StringIO()) as printed:
        for line in block.code.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "gradtrace"
            assert cli.main(arguments) == 0
    return printed.getvalue()


@pytest.mark.parametrize("name", [name for name in PAGES if name not in OWN_TESTS])
def test_every_block_runs_and_prints_what_stands_below_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    names: dict = {"__name__": "page"}
    for block in blocks(PAGES[name]):
        where = f"{name}:{block.line}"
        if block.language == "python" and "not run" not in block.marks:
            printed = run(block, names, where)
        elif block.language == "sh" and block.text is not None:
            printed = typed(block)
        else:
            continue
        assert block.text is None or says(printed, block.text), f"{where} printed\n{printed}"


def test_every_block_says_what_it_is_and_few_do_not_run():
    every = [(name, block) for name, path in PAGES.items() for block in blocks(path)]
    for name, block in every:
        assert block.language in LANGUAGES, f"{name}:{block.line} {block.language!r}"
    left_out = [f"{name}:{block.line}" for name, block in every if "not run" in block.marks]
    assert len(left_out) <= 9, left_out  # trainings of several processes, trainers, paths of the repository


def commands() -> list[tuple[str, str]]:
    """What is to be typed, page by page."""
    found = []
    for name, path in PAGES.items():
        for block in blocks(path):
            if block.language == "sh" or (block.language == "indented" and block.code.split()[0] in PROGRAMS):
                found += [
                    (f"{name}:{block.line}", line) for line in block.code.splitlines() if line.split("#")[0].strip()
                ]
    return found


def test_every_command_is_one(capsys):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    for where, line in commands():
        words = [word for word in shlex.split(line, comments=True) if "=" not in word or word.startswith("-")]
        program, *arguments = words
        if program == "gradtrace":
            cli.parser().parse_args(arguments)
        elif program == "make":
            assert set(arguments) <= targets, f"{where} {line}"
        elif program == "pip":
            assert {e for a in arguments for e in re.findall(r"\[(\w+)\]", a)} <= extras, f"{where} {line}"
        else:
            assert program in PROGRAMS, f"{where} {line}"
            assert all((ROOT / a).exists() for a in arguments if a.endswith(".py") and "/" in a), f"{where} {line}"


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    for link in links(PAGES[name]):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), link
            continue
        target = (PAGES[name].parent / parts.path).resolve() if parts.path else PAGES[name]
        assert target.exists(), f"{name}: {link}"
        assert target.is_relative_to(ROOT), f"{name}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{name}: {link}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path))


def test_the_pages_name_every_notebook():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for path in [*NOTEBOOKS, *DOCS.glob("*.md")]:
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{name}$", index, re.MULTILINE), f"{name} is in no list of docs/index.md"
