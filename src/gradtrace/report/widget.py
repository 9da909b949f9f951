"""A notebook's widget: the page, and a form above it whose questions the trace in the kernel answers.

Needs `pip install 'gradtrace[widget]'`, and is imported by `Trace.widget` alone. What travels is state, as every front
end of anywidget keeps it: `asked` from the form; `page` and `answer` back. Nothing is computed in the browser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

from ..errors import BadArgument, GradtraceError
from ..recording.isolation import alone
from .document import of_trace
from .page import render
from .snapshot import KINDS, Question, Traced

HERE = Path(__file__).parent


class Asking(Traced, Protocol):
    """What a widget asks: what a report does, and single paths."""

    def path(self, key: str, index: tuple[int, ...], *, kind: str = ..., example: int | None = ...) -> object:
        """Give the path of one scalar."""
        ...


class TraceWidget(anywidget.AnyWidget):
    """A report that goes on asking.

    Attributes:
        page: the page that is shown.
        leaves: names of parameters, with their shapes.
        examples: how many there are; 0 if they are not told apart.
        kinds: of traces.
        asked: what the form asks, with a `number`: {"ask": "page", "of", "components"}, or {"ask": "path",
            "parameter", "index", "example", "kind"}, all of them text.
        answer: the number of what was asked, and what comes of it: "page" (its group), "path" (its steps) or "error".
    """

    _esm = HERE / "widget.js"
    _css = HERE / "widget.css"
    page = traitlets.Unicode().tag(sync=True)
    leaves = traitlets.Dict().tag(sync=True)
    examples = traitlets.Int().tag(sync=True)
    kinds = traitlets.List([*KINDS]).tag(sync=True)
    asked = traitlets.Dict().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)

    def __init__(self, trace: Asking, question: Question, title: str) -> None:
        self._trace, self._question, self._title = trace, question, title
        record = trace.tape.record
        super().__init__(
            page=self._page(question),
            leaves={str(leaf.name): list(leaf.shape) for leaf in record.leaves.values()},
            examples=record.examples or 0,
        )

    @traitlets.observe("asked")
    def _answer(self, change: Mapping[str, Any]) -> None:
        asked = change["new"]
        try:
            said = self._path(asked) if asked.get("ask") == "path" else self._show(asked)
        except Exception as error:  # a front end shows nobody what is raised here
            known = isinstance(error, GradtraceError)
            said = {"error": " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())}
        self.answer = {"number": asked.get("number")} | said

    def _path(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Follow the path of one scalar."""
        index, example = asked["index"], asked["example"].strip()
        if re.search(r"[^\d\s,()\[\]-]", index) or (example and not example.isdigit()):
            raise BadArgument(f"an index is numbers and commas, an example a number, not {index!r} and {example!r}")
        at = tuple(int(n) for n in re.findall(r"-?\d+", index))
        path = self._trace.path(asked["parameter"], at, kind=asked["kind"], example=int(example) if example else None)
        return {"path": str(path)}

    def _show(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Make the page of other parameters: joins, flow, influence and paths are theirs."""
        of, components = (tuple(filter(None, map(str.strip, asked[k].split(",")))) for k in ("of", "components"))
        question = replace(self._question, components=components or self._question.components)
        if of:
            question = replace(question, groups={", ".join(of): of}, only=of)
        self.page = self._page(question)
        return {"page": ", ".join(of)}

    @alone()
    def _page(self, question: Question) -> str:
        return render(of_trace(self._trace, question, self._title))
