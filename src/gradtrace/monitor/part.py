"""What a monitor finds in one recorded step: in a training of several processes, the part of one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..api import Tape, Trace
from ..errors import NotOnTape
from ..queries.influence import connections
from ..queries.summaries import answers
from ..recording.ranks import refuse_pipeline
from ..report.snapshot import Question, Taken, graph_of, take
from ..semirings import Family

WHICH = "say which is the loss: `with monitor.step(…) as step: step.loss = …`"


@dataclass(frozen=True)
class Part:
    """What one rank has found.

    Attributes:
        taken: influence, flows, and the first rank's paths.
        semirings: what else the first rank was asked.
        signature: of its graph, and `graph`, where that is new to it.
    """

    taken: Taken
    semirings: list[dict[str, Any]]
    connected: list[str]
    fallbacks: dict[str, int]
    signature: str
    graph: dict[str, Any] | None


def part_of(trace: Trace, asked: Question, semirings: Sequence[Family], known: Container[str]) -> Part:
    """Ask a trace.

    Args:
        known: signatures of graphs that need not be described.
    """
    signature = signature_of(trace)
    return Part(
        taken=take(trace, asked),
        semirings=answers(trace, semirings, asked.only, asked.components),
        connected=_connected(trace, asked.kinds[0]),
        fallbacks=trace.fallbacks,
        signature=signature,
        graph=None if signature in known else graph_of(trace),
    )


def recorded(taped: Tape | Exception) -> Tape:
    """Give a recording, or raise why there is none to be traced."""
    refused = taped if isinstance(taped, Exception) else taped.refused
    if refused is not None:
        raise refused
    assert isinstance(taped, Tape)
    refuse_pipeline(taped.record)  # many of its ranks have no loss, which is not what is to be said of them
    return taped


def loss_of(tape: Tape, given: Any) -> Tensor:
    """Find the loss of a recorded step.

    Raises:
        GradtraceError: there is none, or it might be one of several.
    """
    if given is not None:
        return given
    found = tape.losses()
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotOnTape(f"no loss was found: no tensor with one element that requires grad; {WHICH}")
    made = [call.where for t in found if (call := tape.value_of(t).call) is not None]
    raise NotOnTape(f"the loss may be any of {len(found)} tensors with one element ({'; '.join(made)}); {WHICH}")


def _connected(trace: Trace, kind: str) -> list[str]:
    """Say at which lines examples are connected."""
    if trace.tape.record.examples is None:
        return list(trace.tape.record.exchanged)
    return list(connections(trace.forest(kind, per_example=True)))


def signature_of(trace: Trace) -> str:
    """Give what tells one recording's calls and leaves from another's."""
    record = trace.tape.record
    calls = [(c.index, c.name, c.module, c.source.rpartition("/")[2]) for c in record.before(trace.root)]
    return hashlib.sha256(repr((calls, list(record.leaves))).encode()).hexdigest()[:16]
