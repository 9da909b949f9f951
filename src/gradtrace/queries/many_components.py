"""Sets of any number of components, in one walk where that is possible.

An integer of a tensor has 64 bits. Of more components every distinct set, an integer of any length, gets a number, and
numbers are what is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..recording.components import Component
from ..recording.record import Record, Value
from .component_sets import AT_ONCE, Crossed, Differ, Own, Sets, crossed_by, crossing
from .forest import Forest


def all_crossings(
    forest: Forest, components: Sequence[Component], leaves: Sequence[Value]
) -> Iterator[tuple[slice, Crossed]]:
    """Give `crossing` for any number of components: (which of them, what is crossed of them)."""
    if len(components) > AT_ONCE:
        try:
            whole = list(_by_numbers(forest, components, leaves))
        except Differ:
            pass
        else:
            yield from ((slice(0, len(components)), crossed) for crossed in whole)
            return
    for start in range(0, len(components), AT_ONCE):
        there = slice(start, start + AT_ONCE)
        yield from ((there, crossed) for crossed in crossing(forest, components[there], leaves))


def _by_numbers(forest: Forest, components: Sequence[Component], leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Give `crossing` with the number of each set, in a list of those that there are.

    Raises:
        Differ: a slice tells scalars of one value apart.
    """
    own = _Numbered(forest.record, components)
    for crossed in crossed_by(forest, own, leaves):
        yield replace(crossed, numbered=own.known)


class _Numbered(Own):
    """Distinct sets, in the order in which they came up; the first is empty."""

    def __init__(self, record: Record, components: Sequence[Component]) -> None:
        super().__init__(record, components)
        self.known: list[int] = [0]
        self._number = {0: 0}
        self.word = torch.int32

    def tell_apart(self) -> None:
        """Numbers tell all sets apart."""

    def joined(self, sets: Sets, more: Tensor | int) -> Sets:
        """Give the number of what joins the sets of a value's consumers with its own."""
        assert isinstance(more, int)
        if not more:
            return sets
        if sets.plane is None:
            return Sets(self._of(self.known[sets.also] | more))
        return Sets(0, self.united(sets.plane, more), sets.edge)

    def united(self, sets: Tensor, more: Tensor | int) -> Tensor:
        """Give the numbers of some sets, each joined with another."""
        assert isinstance(more, int)
        if not more:
            return sets
        there = torch.bincount(sets.flatten(), minlength=1).nonzero().flatten()
        after = torch.zeros(int(there.max()) + 1 if len(there) else 1, dtype=sets.dtype)
        after[there] = torch.tensor([self._of(self.known[n] | more) for n in there.tolist()], dtype=sets.dtype)
        return after[sets.to(torch.int64)]

    def _sliced(self, whole: int, masks: Sequence[tuple[int, Tensor | None]]) -> Tensor | int:
        if any(mask is not None for _, mask in masks):
            raise Differ
        return whole

    def _of(self, members: int) -> int:
        if members not in self._number:
            self._number[members] = len(self.known)
            self.known.append(members)
        return self._number[members]
