"""Many processes: what each rank's own trace found, added up over the ranks of `torch.distributed`.

A rank traces its own examples, against its own loss. Shares of traces are sums over (example, scalar) pairs, so that
they can be added: counts exactly, weights up to rounding, each against the loss of its own rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeAlias, TypeVar

from torch import distributed
from torch.distributed import distributed_c10d

from .errors import BadArgument, GradtraceError, RankFailed
from .queries.flow import Flow
from .queries.flow import merged as merged_flows
from .queries.tables import InfluenceTable
from .queries.tables import merged as merged_tables

Found: TypeAlias = "InfluenceTable | Flow | Sequence[InfluenceTable | Flow] | None"
Answer = TypeVar("Answer")
PATIENCE = 300.0  # seconds that ranks wait for one another
MOMENT = 3.0  # seconds that a store may take to answer
GLANCE = 0.1  # seconds between two looks at who has come


def reduced(
    found: Found | Callable[[], Found],
    group: Any = None,
    *,
    scale: float = 1.0,
    timeout: float = PATIENCE,
) -> Any:
    """Add up what each rank found, over the ranks of a group; all of them call this, and all are given the sum.

    >>> table = gradtrace.reduced(lambda: tape.trace(loss).influence(["rnn", "lstm"], of="embed*"))

    Args:
        found: an influence table, a flow, or several of them, which other ranks have in the same order; None for a rank
            without examples. Best as a function that finds it: should it fail, the other ranks are told why.
        group: of `torch.distributed`; all ranks by default. Without `torch.distributed` there is one rank.
        scale: what this rank's weights count: len(x) where its loss is the mean over its examples, and every example
            shall count alike.
        timeout: seconds to wait for the other ranks.

    Returns:
        what a single rank would have found with all examples, one table or flow for each; None if no rank has any.

    Raises:
        RankFailed: another rank failed, and the message says why; or it did not answer in time.
    """
    error: Exception | None = None
    own: Any = None
    try:
        own = found() if callable(found) else found
    except Exception as failed:
        error = failed
    answers = [(own, scale)]
    if distributed.is_available() and distributed.is_initialized():
        answers = room_of(group, timeout).gather((own, scale), error)
    if error is not None:
        raise error
    return _merged([(a, by) for a, by in answers if a is not None])


def _merged(answers: Sequence[tuple[Any, float]]) -> Any:
    if not answers:
        return None
    scales = [by for _, by in answers]
    given = [a for a, _ in answers]
    if all(isinstance(a, InfluenceTable) for a in given):
        return merged_tables(given, scales)
    if all(isinstance(a, Flow) for a in given):
        return merged_flows(given, scales)
    if not all(isinstance(a, (list, tuple)) for a in given) or len({len(a) for a in given}) > 1:
        kinds = ", ".join(dict.fromkeys(type(a).__name__ for a in given))
        raise BadArgument(f"reduced adds up influence tables and flows, or lists of them that match, not {kinds}")
    return [_merged([(part, by) for part, by in zip(parts, scales, strict=True)]) for parts in zip(*given, strict=True)]


class Room:
    """Where the ranks of a group meet: a gloo group of its own, so that what fails in it leaves the program's alone.

    Args:
        group: of `torch.distributed`; None for all ranks.
        timeout: seconds that ranks wait for one another.

    Raises:
        RankFailed: some do not come.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self._ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
        self.rank = self._ranks.index(distributed.get_rank())
        self._wait = timedelta(seconds=timeout)
        self._turn = 0
        self.size = len(self._ranks)
        self._broken = ""
        try:
            self._group: Any = distributed.new_group(
                self._ranks, timeout=self._wait, backend="gloo", use_local_synchronization=True
            )
        except Exception as error:
            raise RankFailed(f"the ranks did not meet within {timeout:g} s ({type(error).__name__})") from None

    def gather(self, own: Any, error: Exception | None = None) -> list[Any]:
        """Give what all ranks give, in their order.

        Args:
            own: what this rank gives.
            error: why it has nothing to give.

        Raises:
            RankFailed: another rank had an error, which is in the message, or did not answer in time: then nothing can
                be gathered any more. A rank's own error is not raised.
        """
        if self._broken:
            raise RankFailed(self._broken)
        answers: list[Any] = [None] * self.size
        reason = None if error is None else said_of(error)
        self._turn += 1
        until = monotonic() + self._wait.total_seconds()
        self._ask(lambda store: store.set(f"{self._turn} {self.rank}", "here"))
        try:
            distributed.monitored_barrier(self._group, self._wait, wait_all_ranks=True)
            distributed.all_gather_object(answers, (own, reason), self._group)
        except RuntimeError:
            self._broken = self._lost(until)
            raise RankFailed(self._broken) from None
        failed = self.named([why for _, why in answers])
        if failed and error is None:
            raise RankFailed(failed)
        return [given for given, _ in answers]

    def _lost(self, until: float) -> str:
        """Say which ranks did not come.

        Where one has ended, gloo ends the wait for all: the others may still be on their way, for as long as they are
        given. One is lost for certain, so that nobody is waited for once a single one is missing.
        """
        while len(missed := self._missing()) > 1 and monotonic() < until:
            sleep(GLANCE)
        longer = f"took longer than {self._wait.total_seconds():g} s"
        if len(missed) == 1:
            return f"rank {self._ranks[missed[0]]} did not answer: it has ended, or {longer}"
        who = f"ranks {', '.join(str(self._ranks[r]) for r in missed)}" if missed else "other ranks"
        return f"{who} did not answer: they have ended, or {longer}"

    def _missing(self) -> list[int]:
        """Tell which ranks have not come; none where nobody can tell."""
        ranks = range(self.size)
        return self._ask(lambda store: [r for r in ranks if not store.check([f"{self._turn} {r}"])]) or []

    def _ask(self, what: Callable[[Any], Answer]) -> Answer | None:
        """Ask the store by which the ranks have met, for a moment: if the rank that has it hangs, it never answers."""
        found: list[Answer] = []

        def look() -> None:
            store = distributed_c10d._get_default_store()
            with suppress(RuntimeError):  # the rank has ended
                found.append(what(distributed_c10d.PrefixStore(f"gradtrace {self._ranks} {self._wait}", store)))

        looking = Thread(target=look, daemon=True)
        looking.start()
        looking.join(MOMENT)
        return found[0] if found else None

    def named(self, reasons: Sequence[str | None]) -> str:
        """Say which of the other ranks failed, and why."""
        others = ((n, why) for n, why in enumerate(reasons) if why and n != self.rank)
        return "; ".join(f"rank {self._ranks[n]}: {why}" for n, why in others)


_ROOMS: dict[tuple[Any, float], Room] = {}


def room_of(group: Any, timeout: float) -> Room:
    """Find or make the room of a group; all of its ranks do so at once."""
    key = group or distributed.group.WORLD, timeout
    if key not in _ROOMS:
        _ROOMS[key] = Room(group, timeout)
    return _ROOMS[key]


def is_distributed(group: Any = None) -> bool:
    """Tell whether there are several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1


def is_first(group: Any = None) -> bool:
    """Tell whether this is the first rank, also before `init_process_group`, as torchrun numbers processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(group) == 0
    return os.environ.get("RANK", "0") == "0"


def said_of(error: Exception) -> str:
    """Say in one line what an error says."""
    said = error.said if isinstance(error, GradtraceError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())
