"""Many paths in little room: paths that meet share what follows, so the forest is stored as a table of steps.

Steps are numbered; each says which step comes after it. A path is a parameter scalar and its first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..queries.forest import Forest
from ..queries.paths import END, Reader, Start, Steps, start_row
from ..recording.layouts import unravelled
from ..recording.record import Value
from .tokens import Tokens

READ = 1_500_000  # steps that may be read in vain, where there is no room for them
# a leaf, a flat index, the example; None for the one in which the path is the strongest
Scalar: TypeAlias = tuple[Value, int, int | None]
Key: TypeAlias = tuple[int, int, int]  # the number of a leaf, a flat index, the example


@dataclass(frozen=True, eq=False)
class Branches:
    """Some steps, by number, and the paths that begin at them.

    Attributes:
        paths: of each its leaf, index, example, first step, and log2 of its weight.
        values: results of calls, each once.
        made: of each step the number of the result that is reached.
        flat: the flat index there.
        derivative: the local one.
        then: the number of the step after it.
    """

    paths: list[dict[str, Any]]
    values: list[Value]
    made: np.ndarray
    flat: np.ndarray
    derivative: np.ndarray
    then: np.ndarray

    def columns(self, tokens: Tokens | None = None) -> dict[str, list[Any]]:
        """Give the steps: by column, one entry a step.

        `call` and `index` say which scalar is reached, `derivative` is the local one, `token` the token at that
        position (or None), `next` the step after it.
        """
        index: list[Any] = [None] * len(self.made)
        token: list[str | None] = [None] * len(self.made)
        order = np.argsort(self.made, kind="stable")
        ends = np.bincount(self.made, minlength=len(self.values)).cumsum()
        for made, steps in zip(self.values, np.split(order, ends[:-1]), strict=False):  # without paths there is none
            at = np.unravel_index(self.flat[steps], made.shape) if made.shape else ()
            places = np.stack(at, 1) if at else np.zeros((len(steps), 0), np.int64)
            words = tokens.at(made, places) if tokens is not None and made.shape else token[: len(steps)]
            for step, place, word in zip(steps.tolist(), places.tolist(), words, strict=True):
                index[step], token[step] = place, word
        call = np.array([made.call.index for made in self.values if made.call is not None], np.int64)[self.made]
        derivative, then = self.derivative.tolist(), self.then.tolist()
        return {"call": call.tolist(), "index": index, "derivative": derivative, "token": token, "next": then}


def branches(forest: Forest, scalars: Sequence[Scalar], most: int) -> Branches:
    """Give the paths of some scalars that have one, the first ones first, while there is room.

    Args:
        most: from how many steps on no path is added.
    """
    starts, steps = _read(forest, scalars, most)
    owner = _owners(steps)
    new = np.bincount(owner, minlength=len(steps.first))
    added = int((new.cumsum() - new < most).sum())
    order = np.argsort(owner, kind="stable")[: int(new[:added].sum())]
    number_of = np.full(len(owner) + 1, END)  # the last stands for the loss
    number_of[order] = np.arange(len(order))
    begin, log2 = number_of[steps.first].tolist(), _weights(steps)[steps.first].tolist()
    paths = [
        {"leaf": leaf, "index": [*unravelled(flat, start.value.shape)], "example": row, "first": first, "log2": weight}
        for ((leaf, flat, row), start), first, weight in [*zip(starts.items(), begin, log2, strict=True)][:added]
    ]
    ends = [made for call, _, output in steps.edges if (made := call.outputs[output]) is not None]
    values = {made.id: made for made in ends}
    numbers = {i: n for n, i in enumerate(values)}
    made = np.array([numbers[end.id] for end in ends], np.int64)[steps.edge[order]]
    columns = steps.flat[order], steps.derivative[order], number_of[steps.then[order]]
    return Branches(paths, [*values.values()], made, *columns)


def _read(forest: Forest, scalars: Sequence[Scalar], most: int) -> tuple[dict[Key, Start], Steps]:
    """Read paths, of a long program a few first, until there is no room for more."""
    numbers = {v.id: i for i, v in enumerate(forest.record.leaves.values())}
    at_once = max(100, READ // max(1, len(forest.record.calls)))  # each value is gone to once for those read together
    while True:
        starts: dict[Key, Start] = {}
        for leaf, flat, example in scalars[:at_once]:
            row = start_row(forest, leaf, flat, example)
            if row is not None:
                starts.setdefault((numbers[leaf.id], flat, row), Start(leaf, flat, row))
        steps = Reader(forest).read([*starts.values()])
        if at_once >= len(scalars) or len(steps.then) >= most:
            return starts, steps
        at_once *= 4


def _owners(steps: Steps) -> np.ndarray:
    """Give of each step the first path that it is on."""
    owner = np.full(len(steps.then), len(steps.first))
    np.minimum.at(owner, steps.first, np.arange(len(steps.first)))
    found = owner.tolist()
    for step, after in enumerate(steps.then.tolist()):
        if after != END and found[step] < found[after]:
            found[after] = found[step]
    return np.array(found, np.int64)


def _weights(steps: Steps) -> np.ndarray:
    """Give log2 of the weight of what is left of a path, from each step on, and of the loss."""
    out = [math.log2(abs(weight)) if weight else -math.inf for weight in steps.derivative.tolist()] + [0.0]
    then = steps.then.tolist()
    for step in range(len(then) - 1, -1, -1):
        out[step] += out[then[step]]
    return np.array(out)
