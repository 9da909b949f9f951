"""The pages of the documentation, taken apart: what is code in them, what it prints, and where links lead.

A page is read as it is. What a reader need not see stands in comments before a block:

    <!-- before: CODE -->      is run before it: a model, say, that stands for the reader's own
    <!-- raises: NAME -->      the block raises this error, whose message is the text below it
    <!-- not run: REASON -->   the block cannot run here
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])}
MARK = re.compile(r"<!-- (before|raises|not run):\s(.*?)\s*-->", re.DOTALL)


@dataclass
class Block:
    """A block of code: its language, its line, what is said of it in comments, and the text that follows."""

    language: str
    code: str
    line: int
    marks: dict[str, str]
    text: str | None = None


def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def blocks(path: Path) -> list[Block]:
    """All blocks of code; a `text` block belongs to the Python or the commands above it, if they have none yet."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    for token in tokens(path):
        if token.type == "html_block":
            marks.update(MARK.findall(token.content))
        elif token.type in ("fence", "code_block"):
            block = Block(token.info if token.type == "fence" else "indented", token.content, token.map[0] + 1, marks)
            marks = {}
            last = found[-1] if found else None
            if block.language == "text" and last and last.language in ("python", "sh") and last.text is None:
                last.text = block.code
            else:
                found.append(block)
    return found


def links(path: Path) -> Iterator[str]:
    """Where links and pictures lead."""
    for token in tokens(path):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield str(target)


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as they are made everywhere: small letters, hyphens, no other signs."""
    titles = [text.content for mark, text in pairwise(tokens(path)) if mark.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
