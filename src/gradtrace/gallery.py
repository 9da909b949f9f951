"""The gallery: programs that tell what backpropagation is, each with a number that it checks.

They are the files of `examples/`, which an installed package has as a folder of its own. Each begins with a title, and
has a `main`, with a `picture` to draw if it draws one. They need what `pip install 'gradtrace[examples]'` brings.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BadArgument, UnknownName

PLACES = (Path(__file__).parent / "examples", Path(__file__).parents[2] / "examples")


@dataclass(frozen=True)
class Program:
    """A program of the gallery: its file, and the first line of what it says of itself."""

    path: Path
    title: str

    @property
    def name(self) -> str:
        """Give what it is called by."""
        return self.path.stem

    @property
    def draws(self) -> bool:
        """Tell whether its `main` takes a picture to draw to."""
        functions = [n for n in _parsed(self.path).body if isinstance(n, ast.FunctionDef) and n.name == "main"]
        return any(argument.arg == "picture" for function in functions for argument in function.args.args)


def programs() -> Mapping[str, Program]:
    """Find the programs, by name.

    Raises:
        BadArgument: they are not where they should be.
    """
    place = next((p for p in PLACES if p.is_dir()), None)
    if place is None:
        raise BadArgument(f"no programs of the gallery in {' or '.join(map(str, PLACES))}: install gradtrace again")
    return {path.stem: Program(path, _title(path)) for path in sorted(place.glob("*.py"))}


def _title(path: Path) -> str:
    return (ast.get_docstring(_parsed(path)) or "").splitlines()[0]


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def run(name: str, picture: str | None = None) -> None:
    """Run one of the programs.

    Args:
        name: which.
        picture: the file to draw its picture to.

    Raises:
        UnknownName: there is none of that name; the message lists those that there are.
        BadArgument: it draws no picture, or a package that it needs is not installed.
    """
    known = programs()
    if name not in known:
        raise UnknownName(f"no program {name!r} in the gallery; there are {', '.join(known)}")
    try:
        main = runpy.run_path(str(known[name].path), run_name=f"gradtrace_gallery_{name}")["main"]
    except ImportError as error:
        raise BadArgument(f"{name} needs {error.name}: pip install 'gradtrace[examples]'") from None
    if picture is None:
        main()
        return
    if not known[name].draws:
        raise BadArgument(f"{name} draws no picture")
    main(picture)
