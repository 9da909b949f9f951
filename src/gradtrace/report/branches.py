"""Many paths in little room: paths that meet share what follows, so the forest is stored as a table of steps.

Steps are numbered; each says which step comes after it. A path is a parameter scalar and its first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..queries.forest import Forest
from ..queries.paths import Reader
from ..recording.layouts import unravelled
from ..recording.record import Value
from .tokens import Tokens

END = -1
COLUMNS = ("call", "index", "derivative", "log2", "token", "next")


@dataclass(eq=False)
class Branches:
    """The steps met so far, by column, and the paths that begin at them.

    Attributes:
        steps: `call` and `index` say which scalar is reached, `derivative` is the local one, `log2` that of its
            absolute value, `token` the token at that position (or None), `next` the step after it.
    """

    forest: Forest
    tokens: Tokens | None = None
    steps: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    paths: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _begun: set[tuple[int, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._reader = Reader(self.forest)

    def add_all(self, scalars: Sequence[tuple[Value, int, int, int | None]], most: int) -> None:
        """Add the paths of some scalars that have one, the first ones first, while there is room.

        Args:
            scalars: of each its leaf, that one's number, the flat index and the example; None for the example in which
                its path is the strongest.
            most: from how many steps on no path is added.
        """
        if len(self.steps["call"]) >= most:
            return
        rows = [self.forest.row(leaf, flat) if row is None else row for leaf, _, flat, row in scalars]
        starts = {(n, flat, row): leaf for (leaf, n, flat, _), row in zip(scalars, rows, strict=True)}
        fresh = {key: leaf for key, leaf in starts.items() if key not in self._begun}
        self._begun.update(fresh)
        there = {key: leaf for key, leaf in fresh.items() if self.forest.traced(leaf, key[2], key[1])}
        self._reader.read((leaf, row, flat) for (_, flat, row), leaf in there.items())
        for (number, flat, row), leaf in there.items():
            if len(self.steps["call"]) < most:
                self._add(leaf, number, flat, row)

    def _add(self, leaf: Value, number: int, flat: int, example: int) -> None:
        first = self._follow(leaf, example, flat)
        if first == END:
            return
        self.paths.append(
            {
                "leaf": number,
                "index": [*unravelled(flat, leaf.shape)],
                "example": example,
                "first": first,
                "log2": self.log2(first),
            }
        )

    def log2(self, step: int) -> float:
        """Give log2 of the absolute product of the derivatives from a step on."""
        total = 0.0
        while step != END:
            total, step = total + self.steps["log2"][step], self.steps["next"][step]
        return total

    def _follow(self, value: Value, example: int, flat: int) -> int:
        """Give the number of the step that a scalar's path begins with, adding what is new of it."""
        added: list[int] = []
        found = END
        while value is not self.forest.loss:
            key = value.id, example if self.forest.batch(value) > 1 else 0, flat
            if key in self._known:
                found = self._known[key]
                break
            if not added and not self.forest.traced(value, key[1], flat):
                break
            call, _, output, there, weight = self._reader.move(value, key[1], flat)
            made = call.outputs[output]
            assert made is not None
            self._known[key] = len(self.steps["call"])
            added.append(self._known[key])
            self._append(made, there, weight)
            value, flat = made, there
        for step, after in zip(added, [*added[1:], found][: len(added)], strict=True):
            self.steps["next"][step] = after
        return added[0] if added else found

    def _append(self, made: Value, flat: int, weight: float) -> None:
        index = unravelled(flat, made.shape)
        assert made.call is not None
        token = self.tokens.at(made, index) if self.tokens is not None and index else None
        log2 = math.log2(abs(weight)) if weight else -math.inf
        row = made.call.index, list(index), weight, log2, token, END
        for name, item in zip(COLUMNS, row, strict=True):
            self.steps[name].append(item)
