"""What a walk brings to values, and along some edges: looked at when it is there, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, TypeAlias

from ..kernels import native
from ..kernels.shared_exponent import Plane
from ..recording.record import Record, Value
from ..semirings.base import Max
from .best import OutOfRange, Strongest
from .elements import Elements
from .walk import Algebra, Edge, walk

EdgeKey: TypeAlias = tuple[int, int]  # the number of a call, and the id of a value that it takes
Key: TypeAlias = int | EdgeKey  # of a value by its id, or of an edge


class Watched(Algebra[Any, Any]):
    """An algebra that somebody looks at.

    Args:
        algebra: what is carried.
        look: called with the id of each value and what it has got, and so for edges.
        values: ids of those that must be seen; others may go by uncomputed.
        edges: that are looked at, each by itself; what goes along them is worked out twice.
    """

    def __init__(
        self,
        algebra: Algebra[Any, Any],
        look: Callable[[Key, Any], None],
        values: Container[int],
        edges: Container[EdgeKey] = (),
    ) -> None:
        self.algebra, self.look, self.values, self.edges = algebra, look, values, edges

    def begin(self, loss: Value) -> Any:
        return self.algebra.begin(loss)

    def finish(self, value: Value, arrived: Any, *, alone: bool) -> Any:
        found = self.algebra.finish(value, arrived, alone=alone)
        self.look(value.id, found)
        return found

    def send(self, edge: Edge, g: Any, known: Any) -> Any:
        key = edge.call.index, edge.argument.id
        if key in self.edges:
            self.look(key, self.algebra.finish(edge.argument, self.algebra.send(edge, g, None), alone=False))
        return self.algebra.send(edge, g, known)

    def relay(self, edge: Edge, arrived: Any, known: Any) -> Any:
        if edge.result.id in self.values or (edge.call.index, edge.argument.id) in self.edges:
            return None
        return self.algebra.relay(edge, arrived, known)


def watch_strongest(
    record: Record,
    loss: Value,
    plane: Callable[[Key, Plane], None],
    element: Callable[[Key, Any], None],
    values: Container[int],
    edges: Container[EdgeKey] = (),
    among: Container[int] | None = None,
) -> bool:
    """Walk a tape under Max, and look: by the compiled kernels at planes, else, or from there anew, at elements.

    Args:
        record, loss, among: as for `walk`; values, edges: as for `Watched`.

    Returns:
        whether values were too far apart for the compiled kernels.
    """
    if native.available():
        try:
            strongest = Watched(Strongest(record.precision(loss), loss, None), plane, values, edges)
            walk(record, loss, strongest, among=among)
        except OutOfRange:
            pass
        else:
            return False
    walk(record, loss, Watched(Elements(Max.carrier, None), element, values, edges), among=among)
    return native.available()
