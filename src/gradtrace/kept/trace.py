"""A whole trace as a file: its record without numbers, its forests, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backward.certificate import Certificate
from ..errors import BadTrace, GradtraceError
from ..queries.forest import Forest
from ..recording.record import Record, Value
from . import forest as kept_forest
from .blobs import Packer, Unpacker
from .record import count, described, restored, text

DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError),
    *(TypeError, ValueError, GradtraceError),
)


@dataclass(frozen=True)
class Kept:
    """What a file holds.

    Attributes:
        root: the loss's value; `loss`: what it came to.
        fallbacks: operators that no exact rule served, with their numbers of calls.
        origin: where the trace was made: `versions`, `command`, `seed` and `peak_memory`.
        forests: whole batches, or each example on its own, of some kinds.
    """

    record: Record
    root: Value
    loss: float
    certificate: Certificate | None
    fallbacks: dict[str, int]
    origin: dict[str, Any]
    forests: tuple[Forest, ...]


def write(path: Path, kept: Kept) -> None:
    """Write a trace, whole or not at all.

    Raises:
        BadArgument: the file cannot be written.
    """
    about, values = described(kept.record, kept.root)
    row, pack = {value.id: n for n, value in enumerate(values)}, Packer()
    about |= {
        "loss": kept.loss,
        "certificate": None if kept.certificate is None else asdict(kept.certificate),
        "fallbacks": kept.fallbacks,
        "origin": kept.origin,
        "forests": [kept_forest.packed(forest, row, pack) for forest in kept.forests],
    }
    pack.write(path, about)


def read(path: Path) -> Kept:
    """Read a trace.

    Raises:
        BadTrace: there is no such file, it is none of this version, or it is damaged.
    """
    found = Unpacker(path)
    try:
        return _kept(found.about, found)
    except BadTrace:
        raise
    except DAMAGED as error:
        said = error.said if isinstance(error, GradtraceError) else f"{type(error).__name__}: {error}"
        raise BadTrace(f"{path} is damaged: {' '.join(said.split())[:200]}") from error


def _kept(about: Mapping[str, Any], found: Unpacker) -> Kept:
    record, root, values = restored(dict(about))
    if root.numel != 1:
        raise ValueError("a loss of several scalars")
    loss, certificate = about["loss"], about["certificate"]
    if type(loss) is not float or not math.isfinite(loss):
        raise ValueError(f"a loss of {loss!r}")
    return Kept(
        record,
        root,
        loss,
        None if certificate is None else _certificate(certificate),
        {text(name): count(n) for name, n in about["fallbacks"].items()},
        _origin(about["origin"]),
        _forests([kept_forest.unpacked(given, record, root, values, found) for given in about["forests"]]),
    )


def _forests(forests: Sequence[Forest]) -> tuple[Forest, ...]:
    if not forests:
        raise ValueError("no paths at all")
    return tuple(forests)


def _certificate(given: Mapping[str, Any]) -> Certificate:
    found = Certificate(**given)
    if not all(type(number) in (int, float) and math.isfinite(number) for number in asdict(found).values()):
        raise ValueError("a certificate of no numbers")
    return found


def _origin(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "versions": {text(k): text(v) for k, v in given["versions"].items()},
        **{key: text(given[key]) for key in ("command", "seed", "peak_memory")},
    }
