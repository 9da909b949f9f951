"""A monitor in each of many processes: they trace the same steps, and put together what they have found.

There is one collective at the end of a trace, in a group of its own, and none on other steps: whether a step is traced
follows from what was exchanged before.
"""

from __future__ import annotations

from typing import Any

from ..errors import RankFailed
from ..ranks import Room, is_distributed, is_first, room_of, said_of
from .part import Part


class Ranks:
    """The ranks that trace together, as one of them knows them.

    Args:
        group: of `torch.distributed`; None for all.
        timeout: seconds that they wait for one another.

    Attributes:
        first: whether this is the one that keeps the history.
        lost: whether they did not answer one another: nothing is traced any more.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self._group, self._timeout = group, timeout
        self._room: Room | None = None
        self._met = False
        self.first = is_first(group)
        self.lost = False

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self._room is not None

    def part(self) -> None:
        """Meet again before the next step."""
        self._met = False

    @property
    def apart(self) -> bool:
        """Whether there are others, and they have not met since they began, or parted."""
        return not (self._met or self.lost) and is_distributed(self._group)

    def meet(self, own: tuple[int, int]) -> tuple[int, int]:
        """Agree with the first rank on the number of the next step, and on that of the next trace.

        Args:
            own: what this one proposes.

        Raises:
            RankFailed: some do not come.
        """
        self._met = True
        self.first = is_first(self._group)
        try:
            self._room = room_of(self._group, self._timeout)
            return self._room.gather(own)[0]
        except RankFailed:
            self.lost = True
            raise

    def gather(self, part: Part | None, due: int, failed: Exception | None) -> tuple[list[Part | None], int, str]:
        """Give what all ranks have found, when the next trace is due, and which of the others failed, and why.

        Args:
            part: what this one has found; None if it has no examples.
            due: when this one would trace next: the last of them counts.
            failed: why it has found nothing.

        Raises:
            RankFailed: they did not answer in time.
        """
        if self._room is None:
            return [part], due, ""
        try:
            answers = self._room.gather((part, due, None if failed is None else said_of(failed)))
        except RankFailed:
            self.lost = True
            raise
        reasons = self._room.named([why for *_, why in answers])
        return [given for given, *_ in answers], max(due for _, due, _ in answers), reasons
