"""The site's own part of Sphinx: pages of the gallery and of the repository's root, and links that lead out of here."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib
from sphinx.util import logging

from gradtrace import gallery

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
GALLERY, PROJECT = DOCS / "gallery", DOCS / "project"
LATER = ("ranks", "study")  # pages that a list names, and that may not be there
FROM_ROOT = {"README.md": "readme", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing"}


def setup(app: Any) -> dict[str, Any]:
    """Tell Sphinx what to call, and when."""
    app.connect("builder-inited", lambda app: generate())
    app.connect(
        "source-read", lambda app, name, source: source.__setitem__(0, listed(name, inside(source[0], name.count("/"))))
    )
    app.connect("autodoc-process-docstring", plain, priority=100)  # before napoleon, which writes markup of its own
    app.connect("build-finished", offline)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def generate() -> None:
    """Write the pages that are not kept."""
    for folder in (GALLERY, PROJECT):
        folder.mkdir(exist_ok=True)
    for program in gallery.programs().values():
        page = GALLERY / f"{program.name}.md"
        if not page.exists() or page.stat().st_mtime < program.path.stat().st_mtime:
            page.write_text(gallery_page(program), encoding="utf-8")
    for name, page in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        write(PROJECT / f"{page}.md", re.sub(r"\]\((?!https?:|#)", "](../../", text))


def write(page: Path, text: str) -> None:
    """Write a page if it is another one than before, so that the rest of the site is not built again."""
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def gallery_page(program: gallery.Program) -> str:
    """Tell one program: what it says of itself, its picture, what it prints, and the program."""
    source = program.path.read_text(encoding="utf-8")
    story = ast.get_docstring(ast.parse(source)) or ""
    title, _, rest = story.partition("\n")
    kept = DOCS / f"{program.name}.svg"  # of a program that takes minutes
    picture, printed = (f"../{kept.name}", "") if kept.exists() else run(program)
    parts = [f"# {title.rstrip('.')}", re.sub(r"\n    python examples.*", "", rest).strip()]
    parts += [f"![What {program.name} draws]({picture})"] * bool(picture)
    parts += [f"```text\n{printed.rstrip()}\n```"] * bool(printed)
    parts += [f"    gradtrace gallery {program.name}", f"## The program\n\n```python\n{after_docstring(source)}```"]
    return "\n\n".join(parts) + "\n"


def run(program: gallery.Program) -> tuple[str, str]:
    """Run a program of the gallery: the file of its picture, if it draws one, and what it prints."""
    matplotlib.use("agg")
    picture = GALLERY / f"{program.name}.svg"
    with redirect_stdout(io.StringIO()) as printed:
        gallery.run(program.name, str(picture) if program.draws else None)
    return picture.name if program.draws else "", printed.getvalue()


def after_docstring(source: str) -> str:
    """Give a program without what it says of itself, which stands above it."""
    first = ast.parse(source).body[0]
    return "\n".join(source.splitlines()[first.end_lineno :]).strip() + "\n"


def inside(text: str, depth: int) -> str:
    """Lead links that leave the folder to the site's own pages, or, where it has none, nowhere."""
    out = rf"\((?:\.\./){{{depth + 1}}}"
    for name, page in FROM_ROOT.items():
        text = re.sub(rf"\]{out}{name}", f"](/project/{page}.md", text)
    text = re.sub(rf"\]{out}docs/", "](/", text)
    text = re.sub(rf"\]{out}examples/(\w+)\.py\)", r"](/gallery/\1.md)", text)
    return re.sub(rf"\[([^\]]+)\]{out}[^)]*\)", r"\1", text)


def listed(name: str, text: str) -> str:
    """Complete the lists of pages: the gallery's are generated, and some are not there yet."""
    if name == "gallery":
        text += "\n```{toctree}\n:hidden:\n:glob:\n\ngallery/*\n```\n"
    missing = [page for page in LATER if not (DOCS / f"{page}.md").exists()]
    return re.sub(rf"^({'|'.join(missing)})\n", "", text, flags=re.MULTILINE) if missing and name == "index" else text


def plain(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep what is mathematics in a docstring from being markup: |w|, a*b, x_."""
    code = r"(``.*?``|`[^`]*`|^ *(?:>>>|\.\.\.) .*$)"
    parts = re.split(code, "\n".join(lines), flags=re.MULTILINE)
    lines[:] = "".join(p if n % 2 else re.sub(r"([|*]|_(?=\W|$))", r"\\\1", p) for n, p in enumerate(parts)).split("\n")


def offline(app: Any, error: Exception | None) -> None:
    """Warn of every page that would fetch something."""
    for page in () if error else Path(app.outdir).rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*"(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        for address in fetched:
            logging.getLogger(__name__).warning("%s fetches %s", page.name, address)
