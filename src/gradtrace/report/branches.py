"""Many paths in little room: paths that meet share what follows, so the forest is stored as a table of steps.

Steps are numbered; each says which step comes after it. A path is a parameter scalar and its first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..queries.forest import NONE, Forest
from ..queries.paths import derivative
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

    def add(self, leaf: Value, number: int, flat: int) -> None:
        """Add the path of one scalar of leaf `number`, if it has one; with examples, that of the strongest."""
        log2 = self.forest.log2[leaf.id].reshape(len(self.forest.log2[leaf.id]), -1)[:, flat]
        example = int(log2.argmax())
        first = self._follow(leaf, example, flat)
        if first == END:
            return
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat), leaf.shape)] if leaf.shape else []
        self.paths.append(
            {"leaf": number, "index": index, "example": example, "first": first, "log2": self.log2(first)}
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
            winners = self.forest.winners[value.id]
            row = example if len(winners) > 1 else 0
            key = value.id, row, flat
            if key in self._known:
                found = self._known[key]
                break
            pointer = int(winners.reshape(len(winners), -1)[row, flat])
            if pointer == NONE:
                break
            call, argument, output, there = self.forest.step(pointer)
            made = call.outputs[output]
            assert made is not None
            self._known[key] = len(self.steps["call"])
            added.append(self._known[key])
            self._append(made, there, derivative(call, argument, flat, output, there))
            value, flat = made, there
        for step, after in zip(added, [*added[1:], found], strict=True):
            self.steps["next"][step] = after
        return added[0] if added else found

    def _append(self, made: Value, flat: int, weight: float) -> None:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), made.shape)) if made.shape else ()
        assert made.call is not None
        token = self.tokens.at(made, index) if self.tokens is not None and index else None
        log2 = math.log2(abs(weight)) if weight else -math.inf
        row = made.call.index, list(index), weight, log2, token, END
        for name, item in zip(COLUMNS, row, strict=True):
            self.steps[name].append(item)


def strongest(forest: Forest, leaves: Sequence[Value], k: int) -> list[tuple[int, int]]:
    """Find the k scalars of the leaves with the strongest paths: (number of the leaf, flat index), strongest first."""
    found: list[tuple[float, int, int]] = []
    for number, leaf in enumerate(leaves):
        log2 = forest.log2[leaf.id].amax(0).flatten()
        top = log2.topk(min(k, len(log2)))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        found += [(value, number, flat) for value, flat in pairs if value > -math.inf]
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    return [(number, flat) for _, number, flat in found[:k]]
