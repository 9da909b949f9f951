"""Sets of any number of components, in one walk where that is possible.

An integer of a tensor has 64 bits. Where all scalars of each value cross the same components, Python's integers
serve; and on the reference kernels every distinct set gets a number, and numbers are what is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..recording.components import Component
from ..recording.record import Value
from .component_sets import AT_ONCE, Crossed, Differ, Own, crossing, inherited
from .flat_index import Places
from .forest import Forest


def all_crossings(
    forest: Forest, components: Sequence[Component], leaves: Sequence[Value]
) -> Iterator[tuple[slice, Crossed]]:
    """Give `crossing` for any number of components: (which of them, what is crossed of them)."""
    if len(components) > AT_ONCE:
        try:
            walk = _by_numbers if forest.compact is None else crossing
            whole = list(walk(forest, components, leaves))
        except Differ:
            pass
        else:
            yield from ((slice(0, len(components)), crossed) for crossed in whole)
            return
    for start in range(0, len(components), AT_ONCE):
        there = slice(start, start + AT_ONCE)
        yield from ((there, crossed) for crossed in crossing(forest, components[there], leaves))


def _by_numbers(forest: Forest, components: Sequence[Component], leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Read sets off backpointers, each as its number in a list of those that there are.

    Raises:
        Differ: a slice tells scalars of one value apart.
    """
    own, places, sets = Own(forest.record, components), Places.of(forest), _Sets()
    numbers = torch.zeros(places.total, dtype=torch.int64)
    for call in reversed(forest.record.calls):
        for value, at, numel in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None:
                continue
            here = own.of(call, value.shape)
            assert isinstance(here, int)
            for b, row in enumerate(sets.joined(inherited(places, winners, numbers), here)):
                numbers[at.start + b * numel : at.stop + b * numel] = row.flatten()
    for leaf in leaves:
        here = own.of_leaf(leaf)
        assert isinstance(here, int)
        flat = sets.joined(inherited(places, forest.winners[leaf.id], numbers), here)
        flat = flat.expand(len(flat), *leaf.shape).reshape(len(flat), -1)
        yield Crossed(leaf, 0, [lambda begin, end, r=row: r[begin:end] for row in flat], sets.known)


class _Sets:
    """Distinct sets, as integers of any length, in the order in which they came up; the first is empty."""

    def __init__(self) -> None:
        self.known: list[int] = [0]
        self._number = {0: 0}

    def joined(self, numbers: Tensor, more: int) -> Tensor:
        """Give the numbers of some sets, each joined with another."""
        if not more:
            return numbers
        found, which = numbers.unique(return_inverse=True)
        after = [self._of(self.known[n] | more) for n in found.tolist()]
        return torch.tensor(after, dtype=torch.int64)[which]

    def _of(self, members: int) -> int:
        if members not in self._number:
            self._number[members] = len(self.known)
            self.known.append(members)
        return self._number[members]
