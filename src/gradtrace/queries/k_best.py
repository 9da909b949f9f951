"""The k best paths, and the signed extremes: forests in which a scalar has several winners.

A backpointer of the ordinary forest says through which consumer a path goes on; here it also says which of the
consumer's own paths it goes on along. Paths are read off one at a time, and are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backward.elements import reverse
from ..backward.walk import Edges
from ..recording.record import Record, Value
from ..semirings.base import Element, Semiring
from ..semirings.ranked import Ranked, entries
from .forest import Forest
from .paths import Move, Path, Reader, flat_index, path_of


@dataclass(eq=False)
class Ranking:
    """Several winners for every scalar.

    Attributes:
        kind: what a path of it is called.
        forest: reads backpointers.
        ids, entry: by value id, entries × scalars: the backpointer, and the consumer's entry to go on with.
        log2: by value id, entries × scalars: log2 of the absolute path weight, -inf where there is no path.
    """

    kind: str
    forest: Forest
    ids: dict[int, Tensor] = field(default_factory=dict)
    entry: dict[int, Tensor] = field(default_factory=dict)
    log2: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = Reader(self.forest)

    @property
    def loss(self) -> Value:
        """Where all paths end."""
        return self.forest.loss

    def walk(self, value: Value, flat: int, entry: int) -> Iterator[Move]:
        """Step along one path."""
        while value is not self.loss:
            pointer, after = int(self.ids[value.id][entry, flat]), int(self.entry[value.id][entry, flat])
            call, argument, output, there = self.forest.step(pointer)
            yield call, argument, output, there, self._reader.derivative(call, argument, flat, output, there)
            made = call.outputs[output]
            assert made is not None
            value, flat, entry = made, there, after

    def path(self, value: Value, flat: int, entry: int) -> Path | None:
        """Read one path; None where the scalar has not so many."""
        log2 = self.log2.get(value.id)
        if log2 is None or entry >= len(log2) or log2[entry, flat] == -torch.inf:
            return None
        return path_of(self.kind, value, flat, self.walk(value, flat, entry))

    def paths(self, value: Value, index: tuple[int, ...] | int) -> list[Path | None]:
        """Read all paths of one scalar, in the order of its entries."""
        flat = flat_index(value, index)
        return [self.path(value, flat, entry) for entry in range(len(self.log2.get(value.id, ())))]

    def strongest(self, values: Sequence[Value], k: int) -> list[Path]:
        """Give the k strongest among all paths of all scalars of some values, strongest first; of equals the first."""
        found = []
        for value in values:
            log2 = self.log2.get(value.id)
            if log2 is not None:
                # scalars × entries, so that ties go to the first scalar
                top = log2.t().flatten().sort(descending=True, stable=True)
                pairs = zip(top.values[:k].tolist(), top.indices[:k].tolist(), strict=True)
                found += [(weight, value, *divmod(at, len(log2))) for weight, at in pairs if weight > -torch.inf]
        found.sort(key=lambda f: -f[0])
        paths = [self.path(value, flat, entry) for _, value, flat, entry in found[:k]]
        return [path for path in paths if path is not None]


def rank(record: Record, loss: Value, semiring: Semiring, kind: str) -> Ranking:
    """Run the reverse pass of a semiring whose carrier is `Ranked`, and keep its backpointers."""
    carrier = semiring.carrier
    assert isinstance(carrier, Ranked)
    ranking = Ranking(kind, Forest(record, loss, kind, None, Edges.of(record)))

    def keep(value: Value, g: Element) -> None:
        found = entries(tuple(p[0].flatten() for p in g))
        ranking.log2[value.id] = torch.stack([e[0].abs().log2() + e[1] for e in found])
        ranking.ids[value.id] = torch.stack([e[2] for e in found])
        ranking.entry[value.id] = torch.stack([e[3] for e in found])

    reverse(record, loss, carrier, keep)
    return ranking
