"""`gradtrace trace`: the same questions asked of a user's own model.

Shares of several batches are averaged with the number of (example, parameter scalar) pairs behind them, so the
plain share is that of all pairs together. A weighted share is averaged in the same way: path weights of different
batches belong to different losses, and are not added up.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path as File
from typing import Any, cast

from torch import Tensor, nn

from ..api import Progress, Tape, Trace, record
from ..errors import GradtraceError, OptionError
from ..queries.arguments import batch_tensors
from ..queries.estimate import Estimate
from ..queries.forest import FIRST
from ..queries.paths import Path
from ..queries.summaries import answers
from ..queries.tables import InfluenceRow, InfluenceTable
from ..recording.components import Component, seen
from ..recording.components import default_components as fallback
from ..report.document import versions
from ..report.snapshot import Question as Asked
from ..report.snapshot import graph_of, snapshot
from ..report.tokens import Texts
from ..semirings import named
from .results import SCHEMA
from .user_code import called, describe, load

EXPECTED = "(model, batches, loss function)"


@dataclass(frozen=True)
class Subject:
    """What a user's function gives.

    Attributes:
        model: any `nn.Module`, in the mode (training or evaluation) that it is to be traced in.
        batches: any iterable of batches.
        loss: called as `loss(model, batch)`; gives a scalar tensor.
        tokens: called with a batch; gives the words of each example, all of equal length. None: there are none.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    tokens: Callable[[Any], Texts] | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of it: see `gradtrace trace --help`."""

    components: tuple[str, ...] | None = None
    of: str = "*"
    kind: str = FIRST
    batches: int = 1
    paths: int = 3
    check: bool = False
    semirings: tuple[str, ...] = ()
    signed: bool = False

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise OptionError(f"--batches must be at least 1, not {self.batches}")
        if self.paths < 0:
            raise OptionError(f"--paths must be at least 0, not {self.paths}")
        for name in self.semirings:
            named(name)


def load_subject(target: str) -> Subject:
    """Call the function that "MODULE:FUNCTION" names.

    Args:
        target: a dotted module name or the path of a .py file, a colon, the name of a function in it.

    Raises:
        OptionError: it isn't there, raised an exception, or gave something else.
    """
    return _subject(target, called(target, load(target)))


def _subject(target: str, given: Any) -> Subject:
    if not isinstance(given, (tuple, list)):
        raise OptionError(f"{target} must return {EXPECTED}, not {type(given).__name__}")
    if len(given) not in (3, 4):
        raise OptionError(f"{target} must return {EXPECTED}, not {len(given)} values")
    model, batches, loss, tokens = *given, *(None,) * (4 - len(given))
    if not isinstance(model, nn.Module):
        raise OptionError(f"the model that {target} returns must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(batches, Iterable):
        raise OptionError(f"the batches that {target} returns must be iterable, not {type(batches).__name__}")
    if not callable(loss):
        raise OptionError(f"the loss function that {target} returns must be callable, not {type(loss).__name__}")
    if tokens is not None and not callable(tokens):
        raise OptionError(
            f"what {target} returns for the words of a batch must be callable, not {type(tokens).__name__}"
        )
    return Subject(model, batches, cast("Any", loss), cast("Any", tokens))


def components_of(trace: Trace, question: Question, model: nn.Module) -> Sequence[Component]:
    """Give the components that are asked about; by default the outermost modules of which anything was seen."""
    record = trace.tape.record
    if question.components is not None:
        return question.components
    return [n for n in default_components(model) if seen(record, n)] or fallback(record)


def default_components(model: nn.Module) -> tuple[str, ...]:
    """Name the model's outermost modules; a list of modules, which is never called itself, gives its members."""
    names = []
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            names += [f"{name}.{inner}" for inner, _ in child.named_children()]
        else:
            names.append(name)
    return tuple(names)


def trace_subject(
    target: str,
    subject: Subject,
    question: Question,
    watch: Callable[[str], None] = lambda doing: None,
    save: File | None = None,
    progress: bool | Progress = False,
) -> dict[str, Any]:
    """Trace the first batches; give what results.json will say.

    Args:
        target: what the results call it.
        watch: called with what is being done.
        save: where the first batch's trace is saved.
        progress: as for `Tape.trace`.

    Raises:
        OptionError: the batches or the loss function do not work.
        GradtraceError: what recording or tracing says.
    """
    taken: dict[str, Any] = {}
    components: Sequence[Component] = ()
    tables: list[InfluenceTable] = []
    paths: list[tuple[int, Path]] = []
    said: list[dict[str, Any]] = []
    for batch in islice(_user_batches(subject.batches), question.batches):
        which = f"batch {len(tables) + 1} of {question.batches}: "
        trace = _trace_batch(subject, question, batch, lambda doing, which=which: watch(which + doing), progress)
        watch(f"{which}joins, flow and influence")
        if not tables:
            components = components_of(trace, question, subject.model)
            taken = take_down(trace, question, components, _words(subject, batch))
            if save is not None:
                trace.save(save)
        table, strongest, answered = _answers(trace, question, components)
        said += [{"batch": len(tables)} | answer for answer in answered]
        del trace
        found = [(len(tables), path) for path in strongest]
        paths = sorted([*paths, *found], key=lambda p: -p[1].log2_weight)[: question.paths]
        tables.append(table)
        gc.collect()  # a tape's calls and values hold each other, and perhaps gigabytes
    if not tables:
        raise OptionError(f"{target} returned no batches")
    rows = [_merge([t.rows[i] for t in tables]) for i in range(len(tables[0].rows))]
    rows.sort(key=lambda row: -row["share"] if not math.isnan(row["share"]) else 1.0)
    return {
        "schema": SCHEMA,
        "kind": "trace",
        "complete": True,
        "versions": versions(),
        "options": {"target": target} | asdict(question),
        "traced_batches": len(tables),
        "influence": [{"kind": question.kind} | row for row in rows],
        "connected": sorted({where for t in tables for where in t.connected}),
        "paths": [{"batch": number} | _path(path) for number, path in paths],
        "semirings": said,
    } | taken


def first_trace(
    target: str,
    subject: Subject,
    watch: Callable[[str], None] = lambda doing: None,
    progress: bool | Progress = False,
) -> Trace:
    """Trace the first batch.

    Args:
        watch, progress: as for `trace_subject`.

    Raises:
        OptionError, GradtraceError: as `trace_subject`.
    """
    for batch in _user_batches(subject.batches):
        return _trace_batch(subject, Question(), batch, watch, progress)
    raise OptionError(f"{target} returned no batches")


def first_estimate(target: str, subject: Subject, question: Question) -> Estimate:
    """Say what questions to a trace of the first batch will cost.

    Raises:
        OptionError, GradtraceError: as `trace_subject`.
    """
    for batch in _user_batches(subject.batches):
        tape, loss = _record_batch(subject, batch)
        return tape.estimate(loss, question.of, *([question.semirings] if question.semirings else []))
    raise OptionError(f"{target} returned no batches")


def _user_batches(batches: Iterable[Any]) -> Iterator[Any]:
    """Iterate; an exception on the way is the user's."""
    try:
        yield from batches
    except Exception as error:
        raise OptionError(f"the batches raised {describe(error)}") from error


def _words(subject: Subject, batch: Any) -> Texts | None:
    if subject.tokens is None:
        return None
    try:
        return [list(words) for words in subject.tokens(batch)]
    except Exception as error:
        raise OptionError(f"the function that gives a batch's words raised {describe(error)}") from error


def take_down(
    trace: Trace, question: Question, components: Sequence[Component], tokens: Texts | None = None
) -> dict[str, Any]:
    """Take down what a report of one batch shows."""
    groups = None if question.of == Question.of else {question.of: question.of}  # else some that suit
    only = (question.of,)
    asked = Asked(
        groups,
        components,
        (question.kind,),
        paths=max(question.paths, 20),
        tokens=tokens,
        only=only,
        signed=question.signed,
    )
    certificate = trace.certificate
    return {
        "graph": graph_of(trace),
        "snapshot": snapshot(trace, asked),
        "certificate": None if certificate is None else asdict(certificate),
        "fallbacks": trace.fallbacks,
    }


def _trace_batch(
    subject: Subject, question: Question, batch: Any, watch: Callable[[str], None], progress: bool | Progress
) -> Trace:
    watch("the forward pass")
    tape, loss = _record_batch(subject, batch)
    watch("a proof against autograd, and the strongest paths" if question.check else "the strongest paths")
    return tape.trace(loss, check=question.check, progress=progress)


def _record_batch(subject: Subject, batch: Any) -> tuple[Tape, Tensor]:
    examples = batch_tensors(batch)
    if not examples:
        raise OptionError(f"a batch must be a tensor, or hold tensors; this one is of type {type(batch).__name__}")
    with record(subject.model, examples=examples) as tape:
        try:
            loss = subject.loss(subject.model, batch)
        except GradtraceError:
            raise
        except Exception as error:
            raise OptionError(f"the loss function raised {describe(error)}{_one_batch(subject)}") from error
    return tape, loss


def _one_batch(subject: Subject) -> str:
    """Say what may be meant where the batches are a tensor, or a tuple: all of them one batch, not each."""
    if not isinstance(subject.batches, (Tensor, tuple)):
        return ""
    return "; it was given the first part of what stands for the batches: if that is one batch, return [batch]"


def _answers(
    trace: Trace, question: Question, components: Sequence[Component]
) -> tuple[InfluenceTable, list[Path], list[dict[str, Any]]]:
    table = trace.influence(components, question.of, kind=question.kind)
    answered = answers(trace, [named(name) for name in question.semirings], question.of, components)
    return table, trace.strongest(question.paths, question.of) if question.paths else [], answered


def _merge(rows: Sequence[InfluenceRow]) -> dict[str, Any]:
    """Average one component's rows over batches; pairs without a path have no say in a share."""
    live = [r.examples * (1 - r.dead_share) for r in rows]
    return {
        "component": rows[0].component,
        "share": _mean([r.share for r in rows], live),
        "weighted_share": _mean([r.weighted_share for r in rows], live),
        "dead_share": _mean([r.dead_share for r in rows], [r.examples for r in rows]),
        "examples": sum(r.examples for r in rows),
        "inside": rows[0].inside,
        "seen": any(r.seen for r in rows),
    }


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    known = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and not math.isnan(v)]
    total = sum(w for _, w in known)
    return sum(v * w for v, w in known) / total if known else math.nan


def _path(path: Path) -> dict[str, Any]:
    return {
        "parameter": path.start,
        "index": list(path.index),
        "kind": path.kind,
        "log2_weight": path.log2_weight,
        "components": list(path.components),
        "steps": [
            {
                "operator": step.operator,
                "module": step.module,
                "index": list(step.index),
                "derivative": step.derivative,
                "log2_weight": step.log2_weight,
            }
            for step in path.steps
        ],
        "text": str(path),
    }
