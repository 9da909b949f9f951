"""A monitor traces some steps of a training, from the program's own forward pass, and keeps a history of them.

What it says of a step holds for that step's batch. Training with it is training without it, to the last bit: see
`recording.guest`. A trace that fails is logged, and noted in the history; it never ends the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..api import Tape
from ..errors import BadArgument, GradtraceError, NotOnTape, RankFailed, UnknownName
from ..queries.arguments import components_of, file_of, kinds_of, sequence_of, whole
from ..ranks import PATIENCE, said_of
from ..recording.components import Component, names_listed
from ..recording.ranks import unwrapped
from ..report.document import BadResults, versions
from ..report.history import SCHEMA_OF_HISTORY, History, of_history
from ..report.page import render
from ..report.snapshot import Question, default_components, together, written
from ..semirings import Family, named
from .book import HISTORY, Book
from .clock import DEARER, Clock, rehearses_at
from .part import Part, loss_of, part_of, recorded
from .ranks import Ranks
from .scalars import scalars_of
from .sinks import Sink
from .step import Step

if TYPE_CHECKING:
    import pandas

PAGE = "report.html"
JOINS = 60  # noted of each trace
LOG = logging.getLogger("gradtrace.monitor")


class Monitor:
    """Trace every so many steps of a training.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> monitor = Monitor(model, every=10, folder=None)
    >>> for _ in range(20):
    ...     x = torch.randn(16, 4)
    ...     with monitor.step(examples=x):
    ...         loss = model(x).square().mean()
    ...     loss.backward()
    >>> [trace["step"] for trace in monitor.history().traces]
    [0, 10]

    Args:
        model: what is trained.
        every: how many steps from one trace to the next, at least.
        of: a glob over parameter names, or several: the parameters whose paths are traced.
        components: what they may cross; by default the modules that a report shows at first.
        kinds: "best", "greedy", or both.
        semirings: what else to ask of every parameter, as `Tape.grad` knows them.
        paths: how many of the strongest paths to keep.
        sinks: where a few numbers of each trace go, and the page at the end: see `gradtrace.monitor.sinks`.
        at_most: what share of the time tracing may take: traces that do not fit are put off, the first one included.
        folder: where history.jsonl and report.html go, None for nowhere; each training needs its own.
        resume: go on with the history that the folder has.
        group: the processes of `torch.distributed` that train together on different examples; by default all. Each of
            them has a monitor, traces its own examples at the same steps, and the numbers are those of all together.
        timeout: seconds that they wait for one another at the end of a trace.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 200,
        of: str | Sequence[str] = "*",
        components: Component | Sequence[Component] | None = None,
        kinds: str | Sequence[str] = ("best",),
        semirings: Family | str | Sequence[Family | str] = ("entropy",),
        paths: int = 20,
        sinks: Sink | Sequence[Sink] = (),
        at_most: float | None = None,
        folder: str | PathLike[str] | None = "gradtrace-monitor",
        resume: bool = False,
        group: Any = None,
        timeout: float = PATIENCE,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise BadArgument(f"Monitor(model) takes a torch.nn.Module, not {type(model).__name__}")
        if at_most is not None and not (isinstance(at_most, Real) and 0 < at_most <= 1):
            raise BadArgument(f"at_most must be a share of the time, above 0 and up to 1, not {at_most!r}")
        self.model, self.every, self.at_most = unwrapped(model), whole("every", every, 1), at_most
        self._ranks = Ranks(group, timeout)
        self._of = (of,) if isinstance(of, str) else tuple(sequence_of("of", of, (str,)))
        _check(self.model, self._of)
        self._components = components_of(components)
        self._kinds = kinds_of(kinds)
        self._semirings = [named(k) for k in several(semirings)]
        self._paths = whole("paths", paths, 0)
        self._sinks = sinks_of(sinks)
        self.clock = Clock()
        self._next: int = 0  # the number of the next step, where nobody gives one
        self._due = 0
        self._closed = False
        self._rehearsed = at_most is None  # whether it is known about how much a trace costs
        self._graphs: set[str] = set()  # that the history has
        self.failures: dict[str, int] = {}
        self.traces = 0
        if not (folder is None or isinstance(folder, (str, PathLike))):
            raise BadArgument(f"folder must be the name of a folder, or None for nowhere, not {folder!r}")
        path = None if folder is None or not self._ranks.first else Path(folder) / HISTORY
        self._book = Book(path, self._run(), resume=bool(resume))
        if resume:
            self._go_on(self._book.history())

    def _run(self) -> dict[str, Any]:
        asked = None if self._components is None else [str(c) for c in self._components]
        options = {"of": list(self._of), "components": asked, "kinds": list(self._kinds), "every": self.every}
        options |= {"semirings": [k.name for k in self._semirings], "at_most": self.at_most}
        run = {"kind": "run", "schema": SCHEMA_OF_HISTORY, "versions": versions(), "model": type(self.model).__name__}
        return run | {"options": options}

    def _go_on(self, history: History) -> None:
        """Go on after the last trace of a history."""
        self._graphs = set(history.graphs)
        self.traces = len(history.traces)
        if history.traces:
            last = history.traces[-1]
            self._next, self._due = last["step"] + 1, last["step"] + self.every
            self.clock.resume(last["seconds"]["tracing"], last["seconds"]["training"])

    def state_dict(self) -> dict[str, Any]:
        """Give what goes into a checkpoint of the training: the number of its next step, and seconds so far."""
        return {"step": self._next, "tracing": self.clock.tracing, "training": self.clock.training}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: traces of steps after it are forgotten, since these will be made again."""
        self.go_to(state["step"])
        if "training" in state:
            self.clock.resume(state["tracing"], state["training"])

    def go_to(self, step: int) -> None:
        """Say which step comes next, as training goes on from a checkpoint; forget traces of it and of later ones."""
        self._due = 0
        self._go_on(self._book.rewind(whole("step", step, 0)))
        self._next = step
        self._ranks.part()

    def step(
        self, examples: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None, *, number: int | None = None
    ) -> Step:
        """Watch a step's forward pass: `with monitor.step(examples=x):` around it and the loss, before `backward()`.

        Args:
            examples: what enumerates the examples in its first dimension; without it a batch is traced as one.
            number: of the step, where the program counts; several forward passes of one step may have the same, and
                the first of them is traced.
        """
        began = self.clock.now()
        if self._ranks.apart:
            self._meet()
        this = self._next if number is None else number
        if this != self._next - 1:  # of several forward passes of one step, the first begins it
            self.clock.start(began)
        self._next = this + 1
        step = Step(self, this, examples, traced=self.wants(this))
        self.clock.own(began)
        return step

    def _meet(self) -> None:
        """Let ranks agree where they are, once, and after a checkpoint was loaded: the first one has the history."""
        try:
            paced = self._due if self.at_most is None else max(self._due, self._next + rehearses_at(self.at_most))
            self._next, self._due = self._ranks.meet((self._next, paced))
        except RankFailed as error:
            self.fail(self._next, error)

    def wants(self, number: int) -> bool:
        """Tell whether a step is to be traced; ranks that trace together all say the same."""
        if self._closed or number < self._due or self._ranks.lost:
            return False
        return self.at_most is None or self._ranks.several or self.clock.affords(self.at_most)

    @property
    def share(self) -> float:
        """The share of the training's time that tracing has taken so far."""
        return self.clock.share

    def take(self, taped: Tape | Exception, loss: Tensor | None, number: int, forward: float) -> None:
        """Trace a recorded step, and note what was found, or why nothing was.

        Args:
            taped: or why it could not be recorded.
            loss: None if the tape has to tell.
            forward: seconds that the step's forward pass took.
        """
        began = self.clock.now()
        part, failed = None, None
        try:
            part = self._trace(taped, loss) if self._rehearsed else self._rehearse(taped, loss)
        except Exception as error:
            failed = error
        trace = self.clock.now() - began
        if self._rehearsed or failed is not None:
            self.clock.traced(forward, trace, whole=failed is None)
        else:
            self.clock.rehearsed(forward, trace, DEARER * max(len(self._kinds), len(self._semirings)))
        began = self.clock.now()
        self._end(number, part, failed)
        self.clock.told(self.clock.now() - began)

    def left(self, number: int, error: BaseException | None) -> None:
        """Note that a step was left before its end, if other ranks wait for it."""
        if self._ranks.several and (error is None or isinstance(error, Exception)):
            self._end(number, None, error or RuntimeError("the step was left without a backward pass"))

    def _end(self, number: int, part: Part | None, failed: Exception | None) -> None:
        """Put together what the ranks have found, and note it; they do this at the same step, whatever happened."""
        self._due = number + (self.every if self._rehearsed else 1)
        if self.at_most is not None and self._ranks.several:
            self._due = max(self._due, number + 1 + self.clock.steps_until(self.at_most))
        try:
            parts, self._due, reason = self._ranks.gather(part, self._due, failed)
            if failed is not None:
                raise failed
            if reason:
                raise RankFailed(reason)
            if not self._rehearsed:
                self._rehearsed = True
                return
            lines = self._lines(number, parts)
        except Exception as error:
            self.fail(number, error)
            return
        self.traces += 1
        lines[-1]["seconds"] = {"tracing": self.clock.tracing, "training": self.clock.training}
        self._note(number, lines)
        if self._ranks.first:
            self._send(number, lines[-1])

    def _rehearse(self, taped: Tape | Exception, loss: Tensor | None) -> None:
        """Learn what a trace costs, by the one pass back on which all that is found depends."""
        tape = recorded(taped)
        if tape.record.examples != 0 or not self._ranks.several:
            tape.trace(loss_of(tape, loss))

    def _trace(self, taped: Tape | Exception, loss: Tensor | None) -> Part | None:
        """Give what this rank finds; None where it has no examples, and others may have some."""
        tape = recorded(taped)
        if tape.record.examples == 0 and self._ranks.several:
            return None
        trace = tape.trace(loss_of(tape, loss))
        if self._components is None:
            self._components = default_components(trace)
        paths = self._paths if self._ranks.first else 0
        group = {", ".join(self._of): self._of}
        asked = Question(
            group, self._components, self._kinds, paths, each=0, only=self._of, joins=JOINS, cover=0, examples=0
        )
        return part_of(trace, asked, self._semirings if self._ranks.first else (), self._graphs)

    def _lines(self, number: int, parts: Sequence[Part | None]) -> list[dict[str, Any]]:
        """Give a line of the history, and before it one for the graph where that is new."""
        there = [part for part in parts if part is not None]
        if not there:
            raise NotOnTape("no rank has an example")
        first, size = there[0], len(parts)
        flowing = [part.taken for part in there if part.signature == first.signature]
        taken = together([part.taken for part in there], flowing, size) if size > 1 else first.taken
        line = {"kind": "trace", "step": number, "graph": first.signature} | written(taken)
        line["semirings"], line["fallbacks"] = first.semirings, first.fallbacks
        line["connected"] = list(dict.fromkeys(where for part in there for where in part.connected))
        if size > 1:
            line["ranks"] = {"all": size, "with_examples": len(there), "in_flows": len(flowing)}
        if first.signature in self._graphs or first.graph is None:
            return [line]
        self._graphs.add(first.signature)
        return [{"kind": "graph", "signature": first.signature} | first.graph, line]

    def fail(self, number: int, error: Exception) -> None:
        """Note that a step could not be traced; the same reason is logged once."""
        reason = said_of(error)
        self._due = max(self._due, number + self.every)
        if reason not in self.failures:
            LOG.warning("step %d could not be traced, and training goes on: %s", number, reason)
        LOG.debug("step %d", number, exc_info=error)
        self.failures[reason] = self.failures.get(reason, 0) + 1
        self._note(number, [{"kind": "failure", "step": number, "reason": reason}])

    def _note(self, number: int, lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            for line in lines:
                self._book.write(line)
        except OSError as error:  # a full disk
            LOG.warning("step %d could not be noted: %s", number, error)

    def _send(self, number: int, line: Mapping[str, Any]) -> None:
        numbers = scalars_of(line) | {"gradtrace/time_share": self.share}
        for sink in list(self._sinks):
            self._tell(sink, lambda sink: sink.scalars(number, numbers))

    def _tell(self, sink: Sink, what: Callable[[Sink], None]) -> None:
        """Tell a sink something; one that fails is told nothing more."""
        try:
            what(sink)
        except Exception as error:
            self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        self._sinks = [s for s in self._sinks if s is not sink]
        reason = f"{type(sink).__name__}: {type(error).__name__}: {error}"
        LOG.warning("nothing more is sent to %s", reason)
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def history(self) -> History:
        """Read what was traced so far."""
        return self._book.history()

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a traced step, kind and component: step, loss, and the columns of an influence table."""
        import pandas

        traces = self.history().traces
        return pandas.DataFrame([{k: t[k] for k in ("step", "loss")} | row for t in traces for row in t["influence"]])

    def report(self, path: str | PathLike[str] | None = None, *, title: str | None = None) -> Path:
        """Write the page of the history so far.

        Args:
            path: where to; by default report.html beside the history.
            title: what it is called.

        Returns:
            the path.

        Raises:
            BadResults: nothing has been traced yet.
            BadArgument: there is no folder to write to.
        """
        if path is None:
            if self._book.path is None:
                raise BadArgument("this monitor has no folder: say where the report goes, as in monitor.report(path)")
            path = self._book.path.with_name(PAGE)
        file, history = file_of(path), self.history()
        if self._put_off and not history.failures:
            raise BadResults(self._put_off)
        file.write_text(render(of_history(history, title)), encoding="utf-8")
        return file

    def summary(self) -> str:
        """Say in a line or two what was traced, what it cost, and what failed."""
        said = [f"gradtrace: {self.traces} traces, {self.share:.1%} of the time"]
        said += [self._put_off] if self._put_off else []
        said += [f"failed ({count}): {reason}" for reason, count in self.failures.items()]
        return "\n".join(said)

    @property
    def _put_off(self) -> str:
        """Say why a budget has left no room for a trace, if it has left none so far."""
        if self.at_most is None or self.traces:
            return ""
        had = self.clock.training
        return (
            f"nothing has been traced yet, since a trace may take {self.clock.expected:.2g} s, and "
            f"at_most={self.at_most:g} of the {had:.3g} s of training {self.at_most * had:.2g} s: train for longer, or "
            "with a larger at_most or none"
        )

    def close(self) -> None:
        """End: write the page, give it to the sinks, close them, and log the summary. Nothing is traced after that."""
        if self._closed:
            return
        self._closed = True
        try:
            page = self.report() if self.traces and self._book.path is not None else None
        except (OSError, GradtraceError) as error:
            LOG.warning("no report: %s", error)
            page = None
        for sink in list(self._sinks):
            self._tell(sink, lambda sink: _end(sink, page))
        LOG.log(logging.WARNING if self.failures else logging.INFO, "%s", self.summary())

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def several(given: Any) -> Sequence[Any]:
    """Give one thing, or several, as several."""
    return given if isinstance(given, (list, tuple)) else (given,)


def sinks_of(given: Any) -> list[Sink]:
    """Take sinks: one, or several.

    Raises:
        BadArgument: something is no sink.
    """
    sinks = list(several(given))
    for sink in sinks:
        if not all(callable(getattr(sink, does, None)) for does in ("scalars", "page", "close")):
            raise BadArgument(f"a sink has scalars(), page() and close(), see gradtrace.monitor.sinks; not {sink!r}")
    return sinks


def _end(sink: Sink, page: Path | None) -> None:
    if page is not None:
        sink.page(page)
    sink.close()


def _check(model: nn.Module, of: Sequence[str]) -> None:
    """See that a glob means a parameter.

    Raises:
        UnknownName: it means none; the message lists those that there are.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in of:
        if not any(fnmatchcase(name, pattern) or name == pattern for name in names):
            raise UnknownName(f"no parameter matches {pattern!r}; there are {names_listed(names) or 'none'}")
