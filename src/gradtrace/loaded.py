"""A saved trace, read back: the same class over a record without numbers.

Tables, paths, flows and reports come out as they did, bit for bit. What needs the tape says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path as File
from typing import Any

from torch import Tensor

from .api import Tape, Trace
from .errors import BadArgument, NotKept
from .kept.trace import Kept, read
from .queries.forest import Forest
from .recording.record import Value


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
