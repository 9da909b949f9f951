"""The book that a monitor keeps: history.jsonl, of which every line is whole once it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadArgument
from ..report.document import finite
from ..report.history import History, parse

HISTORY = "history.jsonl"
ALIKE = ("of", "components", "kinds")  # options without which steps before and after a break cannot be compared


class Book:
    """The lines of a history, in a file or in memory.

    Args:
        path: of the file; None keeps them in memory.
        run: what its first line says.
        resume: go on with the history that is there.

    Raises:
        BadArgument: there is one, and it is not to be gone on with, or was asked something else.
        BadResults: what is there is none.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._lines: list[str] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                if not resume:
                    raise BadArgument(
                        f"{path} has the history of another training: resume=True goes on with it, or choose another "
                        "folder"
                    )
                self._go_on(run)
                return
        self.write(run)

    def _go_on(self, run: Mapping[str, Any]) -> None:
        """Leave out what was cut off as the process was killed; see that the same is asked."""
        kept: list[str] = []
        was = parse(self._read(), str(self.path), lambda line, _: kept.append(line)).run["options"]
        now = json.loads(json.dumps(run["options"]))
        for name in ALIKE:
            if was[name] != now[name]:
                raise BadArgument(
                    f"{self.path} was begun with {name}={was[name]!r}, and this is {now[name]!r}: choose another folder"
                )
        self._replace(kept)

    def _read(self) -> list[str]:
        if self.path is None:
            return self._lines
        return self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)

    def _replace(self, lines: Iterable[str]) -> None:
        """Write all lines anew, at once."""
        if self.path is None:
            self._lines = list(lines)
            return
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(self.path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite become null."""
        text = json.dumps(finite(line), allow_nan=False, separators=(",", ":")) + "\n"
        if self.path is None:
            self._lines.append(text)
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def history(self) -> History:
        """Read it all."""
        return parse(self._read(), str(self.path or "the history"))

    def rewind(self, step: int) -> History:
        """Forget the traces of a step and of those after it: they will be made again. Give what is left."""
        kept: list[str] = []

        def keep(line: str, content: Mapping[str, Any]) -> None:
            if content.get("step", -1) < step:
                kept.append(line)

        parse(self._read(), str(self.path or "the history"), keep)
        self._replace(kept)
        return self.history()
