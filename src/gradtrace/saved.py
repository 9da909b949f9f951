"""What was written, read back: a saved trace is the same class over a record without numbers.

Tables, paths, flows and reports come out as they did, bit for bit. What needs the tape says so. Two traces, whether
they are live, saved, or in a history or results, are compared by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path as File
from typing import Any, TypeAlias

from torch import Tensor

from .api import Tape, Trace
from .errors import BadArgument, GradtraceError, NotKept, UnknownName
from .kept.trace import Kept, read
from .queries.arguments import components_of
from .queries.forest import KINDS, Forest
from .recording.components import Component, check, expand, names_listed
from .recording.record import Record, Value
from .report.changes import ALL
from .report.comparison import Comparison, between
from .report.document import BadResults, of_trace
from .report.history import read_document
from .report.snapshot import Question, default_components, default_groups


def load(path: str | PathLike[str]) -> Trace:
    """Read a trace that `Trace.save` has written.

    It answers `influence`, `path`, `strongest`, `strength`, `flow`, `report`, `to_dataframe` and `to_dot` as the live
    trace did, of the kinds that were saved. It has no tape: `why`, `unused`, `paths`, `extremes`, `bound` and semirings
    raise `NotKept`.

    Args:
        path: the file. Nothing in it is run.

    Raises:
        BadTrace: there is no such file, it is of another version, or it is damaged.
    """
    if not isinstance(path, (str, PathLike)):
        raise BadArgument(f"path must be the name of a file, not {type(path).__name__}")
    return LoadedTrace(read(File(path)))


def _live(question: str, reason: str) -> Callable[..., Any]:
    """Make a method that says why a saved trace has no answer."""

    def refuse(self: object, *args: Any, **kwargs: Any) -> Any:
        del self, args, kwargs
        raise NotKept(f"a saved trace cannot answer {question}, which {reason}: ask the live trace, before saving")

    return refuse


class LoadedTape(Tape):
    """The names of a recording, without its numbers."""

    def __init__(self, kept: Kept) -> None:
        self._record = kept.record

    @property
    def refused(self) -> Exception | None:
        """Nothing: what was refused was not saved."""
        return None

    def value_of(self, tensor: Tensor) -> Value:
        """Refuse: tensors are the program's, which is gone."""
        del tensor
        raise NotKept("a saved trace knows parameters by their names, and no tensors")

    def _afford(self, question: str, loss: Value, leaves: Sequence[Value] | None = None, *, lanes: int = 1) -> None:
        """Let every question pass: what takes memory was done before saving."""

    estimate = _live("estimate(…)", "reads the sizes of numbers")
    losses = _live("losses()", "looks for tensors")
    grad = _live("grad(…)", "walks the tape")
    jacobian = _live("jacobian(…)", "runs an operator")
    trace = _live("trace(…)", "walks the tape")


class LoadedTrace(Trace):
    """A trace that was saved: its forests, and no tape."""

    def __init__(self, kept: Kept) -> None:
        self.tape, self.root, self.loss, self.certificate = LoadedTape(kept), kept.root, kept.loss, kept.certificate
        self.origin, self._fallbacks, self._progress = kept.origin, kept.fallbacks, False
        self._forests = {(forest.kind, forest.labels is not None): forest for forest in kept.forests}

    @property
    def has(self) -> Iterable[tuple[str, bool]]:
        """What was saved: kinds of paths, and whether of each example."""
        return list(self._forests)

    @property
    def fallbacks(self) -> dict[str, int]:
        """Operators on the way to the loss that no exact rule served, with their numbers of calls."""
        return dict(self._fallbacks)

    def _forest(self, kind: str, *, per_example: bool, of: Sequence[Value] | None = None) -> Forest:
        del of
        found = self._forests.get((kind, per_example))
        if found is None:
            there = ", ".join(f"{k} paths of {_whose(apart)}" for k, apart in self._forests)
            raise NotKept(
                f"this trace was saved without {kind} paths of {_whose(per_example)}: it has {there}; "
                "save(path, kinds=…, per_example=…) says what is kept"
            )
        return found

    why = _live("why(…)", "reads the numbers on the tape")
    unused = _live("unused()", "reads where autograd was cut off")
    paths = _live("paths(…)", "searches the tape (`strongest` and `path` read what was kept)")
    extremes = _live("extremes(…)", "searches the tape")
    bound = _live("bound(…)", "walks the tape")


def _whose(apart: bool) -> str:
    return "each example" if apart else "the batch as a whole"


def document_of(path: str | PathLike[str]) -> dict[str, Any]:
    """Make a report's document of what was written: a saved trace, results.json, or a monitor's history.jsonl.

    Raises:
        BadTrace, BadResults: it is none of these, or damaged.
    """
    file = File(path)
    if file.suffix in JSON:
        return read_document(file)
    trace = load(file)
    return of_trace(trace, _question(trace), f"gradtrace: {file.name}")


JSON = (".json", ".jsonl")
Written: TypeAlias = Trace | str | PathLike[str]


def compare(
    before: Written,
    after: Written,
    *,
    names: Sequence[str] | None = None,
    components: Sequence[Component] | None = None,
) -> Comparison:
    """Say what moved from one trace to another, matched by name.

    Either may be a trace, live or loaded; a file that `Trace.save` wrote; a results.json of `gradtrace trace` or
    `gradtrace compete`; or a monitor's history.jsonl. "history.jsonl@200" is its trace at step 200; without a step the
    last one is meant. A trace is asked what the other side says.

    Args:
        names: what they are called; by default the names of the files.
        components: what influence is asked of, where both are traces; by default what both show at first.

    Raises:
        BadArgument: one is none of these, or has no such step.
        BadTrace, BadResults: a file cannot be read.
    """
    opened = [
        _opened(given, called) for given, called in zip((before, after), _called(before, after, names), strict=True)
    ]
    known = components_of(components)
    try:
        first, second = (_taken(mine, other, known) for mine, other in (opened, opened[::-1]))
        return between(first, second)
    except GradtraceError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise BadResults(f"one of the two is damaged: {type(error).__name__}: {error}") from error


def _called(before: Written, after: Written, names: Sequence[str] | None) -> Sequence[str]:
    """Give both a name: that of the file, with as many folders as tell them apart."""
    if names is not None:
        if isinstance(names, str) or len(names) != 2:
            raise BadArgument(f"names must be two, not {names!r}")
        return names
    first, second = (File(given).parts if isinstance(given, (str, PathLike)) else () for given in (before, after))
    depth = 1
    while first and second and first != second and first[-depth:] == second[-depth:]:
        depth += 1
    return ["/".join(parts[-depth:]) or side for side, parts in (("before", first), ("after", second))]


Opened: TypeAlias = tuple[str, Trace | dict[str, Any], int | None]  # what it is called, what it is, of which step


def _opened(given: Written, called: str) -> Opened:
    if isinstance(given, Trace):
        return called, given, None
    if not isinstance(given, (str, PathLike)):
        raise BadArgument(f"what is compared is a trace or the name of a file, not {type(given).__name__}")
    file, step = File(given), None
    if not file.exists() and (found := re.fullmatch(r"(.+)@(\d+)", file.name)):
        file, step, called = file.with_name(found[1]), int(found[2]), called.removesuffix(f"@{found[2]}")
    if file.suffix in JSON:
        return called, read_document(file), step
    if step is not None:
        raise BadArgument(f"{file} is one trace, and has no steps: leave out @{step}")
    return called, load(file), None


def _taken(
    mine: Opened, other: Opened, components: Sequence[Component] | None
) -> tuple[str, dict[str, Any], dict[str, Any], bool]:
    """Give a side's name, its document, the snapshot in it, and whether all its parameters were asked about."""
    called, content, step = mine
    if isinstance(content, Trace):
        document = of_trace(content, _question(content, other, components))
        return called, document, document["snapshots"][0], True
    return called, content, _snapshot(called, content, step), False


def _snapshot(called: str, document: dict[str, Any], step: int | None) -> dict[str, Any]:
    found = [s for s in document["snapshots"] if step is None or s["step"] == step]
    if not found:
        there = [str(s["step"]) for s in document["snapshots"]]
        raise BadArgument(f"{called} has no trace of step {step}; there are {names_listed(there) or 'none'}")
    return found[-1]


def _question(trace: Trace, other: Opened | None = None, components: Sequence[Component] | None = None) -> Question:
    """Ask a trace what the other side says, as far as it knows the names, of what was saved of it."""
    record = trace.tape.record
    has = list(trace.has) if isinstance(trace, LoadedTrace) else [(k, record.examples is not None) for k in KINDS]
    apart = any(each for _, each in has)
    kinds = [kind for kind, each in has if each == apart]
    if other is None:
        return Question(kinds=kinds, per_example=apart)
    content = other[1]
    if isinstance(content, Trace):
        groups = [*default_groups(record), *default_groups(content.tape.record)]
        asked = components or [*default_components(trace), *default_components(content)]
    else:
        rows = _snapshot(other[0], content, other[2])["influence"]
        groups, asked = [row["of"] for row in rows], [row["component"] for row in rows]
        kinds = [kind for kind in kinds if any(row["kind"] == kind for row in rows)] or kinds
    members = {name: _members(record, name) for name in dict.fromkeys(groups)}
    there = [c for c in dict.fromkeys(asked) if _exists(record, c)]
    return Question({n: own for n, own in members.items() if own} or None, there or None, kinds, per_example=apart)


def _members(record: Record, group: str) -> list[str]:
    """Find the parameters of a group by its name."""
    if group in ("*", ALL):
        return list(record.leaves)
    return [n for n in record.leaves if n == group or n.startswith(f"{group}.") or fnmatchcase(n, group)]


def _exists(record: Record, component: Component) -> bool:
    try:
        check(record, expand([component]))
    except UnknownName:
        return False
    return True
