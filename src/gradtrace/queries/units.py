"""Units: what leaf scalars send along their traces, on its way from value to value.

Only scalars at which something has arrived are kept, with their amounts: of the many scalars of a value, traces run
through few. A value sends everything on at once, when no more can arrive, and is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..recording.record import Value
from .consumers import Consumers, Hop, Section
from .forest import NONE, Forest

MANY = 4096  # scalars from which on all of a value's are looked up at once
FEW = 64  # entries that are sent on as they are, though some may be of one scalar
FARTHEST = 900.0  # powers of two between weights, from which on a float is too narrow for their quotient

NOWHERE, NOTHING = np.zeros(0, np.int64), np.zeros((0, 0))


@dataclass(frozen=True)
class Given:
    """What a leaf's scalars may send.

    Attributes:
        weight: by row, the weights over 2^of.
        live: by row, which scalars have a trace; None where those are the ones whose weight is not 0.
        top: log2 of the largest weight.
    """

    weight: np.ndarray
    live: np.ndarray | None
    of: float
    top: float

    def live_in(self, row: int) -> np.ndarray:
        """Give the flat positions of the scalars that have a trace."""
        return np.flatnonzero(self.weight[row] if self.live is None else self.live[row])


def given_by(forest: Forest, leaf: Value) -> Given | None:
    """Read what a leaf may send; None where it has no scalar with a trace."""
    if forest.compact is not None:
        plane = forest.compact.weights.get(leaf.id)
        if plane is None or not plane.data.numel():
            return None
        top = float(plane.data.amax().to(torch.float64).log2() + plane.exponent)
        weight, live = plane.data.reshape(len(plane.data), -1).numpy(), forest.compact.live(leaf.id)
        if live is None:
            return Given(weight, None, float(plane.exponent), top) if top > -math.inf else None
        return Given(weight, live.reshape(weight.shape).numpy(), float(plane.exponent), top) if live.any() else None
    log2, live = forest.log2[leaf.id], forest.winners[leaf.id] != NONE
    if not bool(live.any()):
        return None
    top = float(log2.max())
    relative = torch.zeros_like(log2) if top == -math.inf else torch.exp2(log2 - top)
    flat = len(log2), -1
    return Given(relative.reshape(flat).numpy(), live.reshape(flat).numpy(), top, top)


@dataclass(eq=False)
class _Arrived:
    """Units that have come to one row of a value: places (flat) and amounts (of each flow), part by part."""

    places: list[np.ndarray] = field(default_factory=list)
    amounts: list[np.ndarray] = field(default_factory=list)
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def gathered(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Give all of them, those of one scalar as one where there are many."""
        if len(self.places) == 1 and len(self.places[0]) <= max(FEW, size):
            return self.places[0], self.amounts[0]
        places, amounts = np.concatenate(self.places), np.concatenate(self.amounts)
        if len(places) <= FEW:
            return places, amounts
        if 8 * len(places) > size:
            return _present(_summed(places, amounts, size))
        kept, number = np.unique(places, return_inverse=True)
        return kept, _summed(number, amounts, len(kept))


def _summed(places: np.ndarray, amounts: np.ndarray, size: int) -> np.ndarray:
    """Add up what has one place: size × flows."""
    if amounts.shape[1] == 1:
        return np.bincount(places, amounts[:, 0], size)[:, None]
    out = torch.zeros(size, amounts.shape[1], dtype=torch.float64)
    return out.index_add_(0, torch.from_numpy(places), torch.from_numpy(amounts)).numpy()


def _present(amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the places where there is anything, and what."""
    # by torch: numpy's sums along so short an axis take ten times as long
    places = np.flatnonzero(amounts[:, 0] if amounts.shape[1] == 1 else torch.from_numpy(amounts).sum(1).numpy())
    return places, amounts[places]


@dataclass(eq=False)
class Stream:
    """Units on their way, one column for each flow that is wanted.

    Attributes:
        arrived: by value id and row, what has come to it and has not gone on yet.
        edges: what went along every edge.
    """

    consumers: Consumers
    flows: int
    arrived: dict[tuple[int, int], _Arrived] = field(default_factory=dict)
    edges: dict[Hop, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._straight = self.consumers.straight()

    def send_on(self, value: Value) -> None:
        """Move all units of a value to the consumers through which they go on."""
        for row in range(self.consumers.forest.batch(value)):
            come = self.arrived.pop((value.id, row), None)
            if come is not None:
                self._send_row(value, row, come)

    def _send_row(self, value: Value, row: int, come: _Arrived) -> None:
        if value.id in self._straight:
            hop, target = self.consumers.only(value)
            self._arrive((hop,), target, 0, NOWHERE, NOTHING, come.total)
            return
        places, amounts = come.gathered(value.numel)
        self._send(value, row, places, amounts, come.total)

    def leave(self, leaf: Value, given: Given, columns: Sequence[tuple[int, float | None]]) -> None:
        """Send what the scalars of a leaf do: in each of some columns one each, or, where it says so, weight/2^unit."""
        sections = self.consumers.sections(leaf)
        size = _size(sections)
        for row in range(len(given.weight)):
            if len(sections) == 1 and sections[0].target.id in self._straight:
                live = given.live_in(row)
                totals = np.array([float(len(live))]), given.weight[row].sum(dtype=np.float64, keepdims=True)
                total = self._in_columns(*totals, given.of, columns)[0]
                if len(live):
                    self._arrive(sections[0].hops, sections[0].target, row, NOWHERE, NOTHING, total)
                continue
            if sections and size <= 4 * leaf.numel:
                found = self._counted(leaf, row, given, size, columns)
                for section in sections:
                    here = slice(section.begin, section.begin + section.target.numel)
                    count, weight = found[0][here], found[1][here]
                    places = np.flatnonzero(count if any(unit is None for _, unit in columns) else weight)
                    amounts = self._in_columns(count[places], weight[places], given.of, columns)
                    if len(places):
                        self._arrive(section.hops, section.target, row, places, amounts, _total(amounts))
                continue
            live = given.live_in(row)
            if len(live):
                weight = given.weight[row][live].astype(np.float64)
                amounts = self._in_columns(np.ones(len(live)), weight, given.of, columns)
                self._send(leaf, row, live, amounts, _total(amounts))

    def _counted(
        self, leaf: Value, row: int, given: Given, size: int, columns: Sequence[tuple[int, float | None]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give for each numbered place where the traces of a leaf's scalars go on (how many do, their weights' sum)."""
        count, sums = np.zeros(size), np.zeros(size)
        weighted, plain = (any((unit is not None) == kind for _, unit in columns) for kind in (True, False))
        for begin, end, numbers in self.consumers.numbers(leaf, row):
            weight = given.weight[row, begin:end]
            live = weight != 0 if given.live is None else given.live[row, begin:end]
            if not live.all():
                numbers, weight = numbers[live], weight[live]
            if plain:
                count += np.bincount(numbers, minlength=size)
            if weighted:
                sums += np.bincount(numbers, weight, size)
        return count, sums

    def _in_columns(
        self, count: np.ndarray, weight: np.ndarray, of: float, columns: Sequence[tuple[int, float | None]]
    ) -> np.ndarray:
        out = np.zeros((len(count), self.flows))
        for column, unit in columns:
            out[:, column] = count if unit is None else _times(weight, of - unit if of != unit else 0.0)
        return out

    def _send(self, value: Value, row: int, places: np.ndarray, amounts: np.ndarray, total: np.ndarray) -> None:
        sections = self.consumers.sections(value) if 2 * len(places) >= max(value.numel, MANY) else []
        if sections and _size(sections) <= 4 * value.numel:
            self._send_most(value, row, sections, places, amounts)
            return
        for part in self.consumers.of(value, row, places):
            own = amounts if part.which is None else amounts[part.which]
            self._arrive(part.hops, part.target, row, part.flat, own, total if part.which is None else _total(own))

    def _send_most(
        self, value: Value, row: int, sections: list[Section], places: np.ndarray, amounts: np.ndarray
    ) -> None:
        """Do what `_send` does by looking up all scalars of a value, of which most send something."""
        numbers = np.concatenate([found for *_, found in self.consumers.numbers(value, row)])
        numbers = numbers if len(places) == len(numbers) and _rising(places) else numbers[places]
        summed = _summed(numbers, amounts, _size(sections))
        for section in sections:
            there, own = _present(summed[section.begin : section.begin + section.target.numel])
            if len(there):
                self._arrive(section.hops, section.target, row, there, own, _total(own))

    def _arrive(
        self,
        hops: Sequence[Hop],
        target: Value,
        row: int,
        places: np.ndarray,
        amounts: np.ndarray,
        total: np.ndarray,
    ) -> None:
        for hop in hops:
            known = self.edges.get(hop)
            self.edges[hop] = total if known is None else known + total
        key = target.id, row if row and self.consumers.forest.batch(target) > 1 else 0
        come = self.arrived.get(key)
        if come is None:
            come = self.arrived[key] = _Arrived()
        come.total = come.total + total
        if target.id in self._straight:
            return
        come.places.append(places)
        come.amounts.append(amounts)


def _total(amounts: np.ndarray) -> np.ndarray:
    return amounts.sum(0) if amounts.shape[1] == 1 else torch.from_numpy(amounts).sum(0).numpy()


def _size(sections: Sequence[Section]) -> int:
    """Give how many numbers sections take."""
    return sections[-1].begin + sections[-1].target.numel if sections else 0


def _rising(places: np.ndarray) -> bool:
    return bool((places[1:] > places[:-1]).all())


def _times(weight: np.ndarray, shift: float) -> np.ndarray:
    """Give weight · 2^shift, where the power of two alone may be too small or too large for a float."""
    if abs(shift) < FARTHEST:
        return weight * 2.0**shift
    with np.errstate(divide="ignore"):
        return np.exp2(np.log2(weight) + shift)
