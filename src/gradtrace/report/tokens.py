"""Which token of a text a scalar belongs to, read off the shape of the result that it is in.

Only shapes that say it count: batch × time first, time × batch, both in one axis, or attention's batch × head ×
time. Inside a recurrent cell, whose results are batch × size, no shape says at which time it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..recording.record import Value

Texts = Sequence[Sequence[str]]


@dataclass(eq=False)
class Tokens:
    """Tokens of each example, batch × time, all equally long."""

    texts: Texts
    _swapped: dict[int, bool | None] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int]:
        """Batch and time."""
        return len(self.texts), len(self.texts[0]) if self.texts else 0

    def at(self, value: Value, index: np.ndarray) -> list[str | None]:
        """Give the tokens at whose positions some scalars stand, a row of the index each; None where unclear."""
        batch, time = self.sizes
        shape, swapped = value.shape, self._is_swapped(value)
        if batch == time or swapped is None:
            return [None] * len(index)
        first = index[:, 0]
        if shape[0] == batch * time:
            places = (first % batch, first // batch) if swapped else (first // time, first % time)
        elif shape[:2] in ((batch, time), (time, batch)):
            places = (index[:, 1], first) if swapped else (first, index[:, 1])
        elif len(shape) == 4:
            places = first, index[:, 2]
        else:
            places = first * batch // shape[0], index[:, 1]
        rows, times = (map(int, p) for p in places)
        return [self.texts[row][at] for row, at in zip(rows, times, strict=True)]

    def _is_swapped(self, value: Value) -> bool | None:
        """Tell whether time comes before batch; None where the shape does not say that there are both."""
        chain = []
        while value.id not in self._swapped:
            found = self._by_shape(value)
            before = _source(value) if found == "as before" else None
            chain.append(value)
            if before is None:
                self._swapped[value.id] = {"swapped": True, "straight": False}.get(found or "")
                break
            value = before
        for later in chain:
            self._swapped[later.id] = self._swapped[value.id]
        return self._swapped[value.id]

    def _by_shape(self, value: Value) -> str | None:
        batch, time = self.sizes
        shape = value.shape
        if shape[:2] == (batch, time):
            return "straight"
        if shape[:2] == (time, batch):
            return "swapped"
        if shape and shape[0] == batch * time:
            return "as before"
        whole_heads = len(shape) == 4 and shape[0] == batch and shape[2] == time
        folded_heads = len(shape) == 3 and shape[0] % batch == 0 and shape[1] == time
        return "straight" if whole_heads or folded_heads else None


def _source(value: Value) -> Value | None:
    """Give the value of the same number of scalars from which a call made this one, or else its first argument."""
    given = [i.value for i in value.call.inputs if i.value is not None and i.value.call] if value.call else []
    alike = [v for v in given if v.shape[:1] == value.shape[:1] or v.numel == value.numel]
    return next(iter(alike or given), None)
