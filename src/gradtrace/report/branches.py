"""Many paths in little room: paths that meet share what follows, so the forest is stored as a table of steps.

Steps are numbered; each says which step comes after it. A path is a parameter scalar and its first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..queries.forest import Forest
from ..queries.paths import Reader
from ..recording.layouts import unravelled
from ..recording.record import Value
from .tokens import Tokens

END = -1


@dataclass(eq=False)
class Branches:
    """The steps met so far, and the paths that begin at them."""

    forest: Forest
    paths: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _begun: set[tuple[int, int, int]] = field(default_factory=set)
    # of each step: what is reached, the flat index there, the derivative, log2 of the path from here on, the next step
    _made: list[Value] = field(default_factory=list)
    _flat: list[int] = field(default_factory=list)
    _derivative: list[float] = field(default_factory=list)
    _log2: list[float] = field(default_factory=list)
    _next: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = Reader(self.forest)
        self._apart: dict[int, bool] = {}  # of a value, whether examples have scalars of their own

    def add_all(self, scalars: Sequence[tuple[Value, int, int, int | None]], most: int) -> None:
        """Add the paths of some scalars that have one, the first ones first, while there is room.

        Args:
            scalars: of each its leaf, that one's number, the flat index and the example; None for the example in which
                its path is the strongest.
            most: from how many steps on no path is added.
        """
        if len(self._made) >= most:
            return
        rows = [self.forest.row(leaf, flat) if row is None else row for leaf, _, flat, row in scalars]
        starts = {(n, flat, row): leaf for (leaf, n, flat, _), row in zip(scalars, rows, strict=True)}
        fresh = {key: leaf for key, leaf in starts.items() if key not in self._begun}
        self._begun.update(fresh)
        there = {key: leaf for key, leaf in fresh.items() if self.forest.traced(leaf, key[2], key[1])}
        there = {key: leaf for key, leaf in there.items() if leaf is not self.forest.loss}
        self._reader.read((leaf, row, flat) for (_, flat, row), leaf in there.items())
        for (number, flat, row), leaf in there.items():
            if len(self._made) >= most:
                return
            first = self._follow(leaf, row, flat)
            index = [*unravelled(flat, leaf.shape)]
            start = {"leaf": number, "index": index, "example": row, "first": first, "log2": self._log2[first]}
            self.paths.append(start)

    def _follow(self, value: Value, example: int, flat: int) -> int:
        """Give the number of the step that a scalar's path begins with, adding what is new of it."""
        begin, loss, found = len(self._made), self.forest.loss, END
        while value is not loss:
            apart = self._apart.get(value.id)
            if apart is None:
                apart = self._apart[value.id] = self.forest.batch(value) > 1
            key = value.id, example if apart else 0, flat
            known = self._known.get(key)
            if known is not None:
                found = known
                break
            call, _, output, flat, weight = self._reader.moves[key]
            made = call.outputs[output]
            assert made is not None
            value = made
            self._known[key] = len(self._made)
            self._made.append(made)
            self._flat.append(flat)
            self._derivative.append(weight)
        total = 0.0 if found == END else self._log2[found]
        added = []
        for weight in reversed(self._derivative[begin:]):
            total += math.log2(abs(weight)) if weight else -math.inf
            added.append(total)
        self._log2 += reversed(added)
        end = len(self._made)
        self._next += [*range(begin + 1, end), found][: end - begin]
        return begin if end > begin else found

    def columns(self, tokens: Tokens | None = None) -> dict[str, list[Any]]:
        """Give the steps: by column, one entry a step.

        `call` and `index` say which scalar is reached, `derivative` is the local one, `token` the token at that
        position (or None), `next` the step after it.
        """
        index: list[Any] = [None] * len(self._made)
        token: list[str | None] = [None] * len(self._made)
        alike: dict[int, list[int]] = {}
        for step, made in enumerate(self._made):
            alike.setdefault(made.id, []).append(step)
        for steps in alike.values():
            made = self._made[steps[0]]
            flat = np.array([self._flat[step] for step in steps])
            places = np.stack(np.unravel_index(flat, made.shape), 1) if made.shape else np.zeros((len(steps), 0), int)
            words = tokens.at(made, places) if tokens is not None and made.shape else token[: len(steps)]
            for step, at, word in zip(steps, places.tolist(), words, strict=True):
                index[step], token[step] = at, word
        call = [made.call.index for made in self._made if made.call is not None]
        return {"call": call, "index": index, "derivative": self._derivative, "token": token, "next": self._next}
