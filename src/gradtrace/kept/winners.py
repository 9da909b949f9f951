"""Winners as the compiled kernels leave them, as JSON and arrays, and back.

Which edges a value has and which way each leads is kept as it is, since the queries read just that. What is stored of
each scalar is kept where a leaf's path runs: whatever is stored elsewhere means nothing, and is 0 when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners, pick, through
from ..backward.walk import EDGE_BITS, offsets
from ..jacobians.index_maps import Affine, Composed, Raw, Reordered, Shared, Sought, Table, Way
from ..queries.forest import Forest
from ..recording.record import Value
from .blobs import Packer, Some, Unpacker
from .record import count, item, shape

FAR = 1 << 40  # no stride or offset is as large
SHORT, BYTE = 1 << 15, 1 << 8


def packed_way(way: Way, pack: Packer) -> list[Any]:
    """Describe a way."""
    match way:
        case Affine():
            table = None if way.table is None else pack.put(way.table())
            return ["affine", way.shape, way.stride, way.offset, way.step, table]
        case Table():
            return ["table", pack.put(way.index())]
        case Sought():
            return ["sought", pack.put(way.rows), pack.put(way.order), way.width]
        case Shared():
            return ["shared", pack.put(way.place), way.width]
        case Raw():
            return ["raw"]
        case Composed():
            inner = None if way.inner is None else [len(way.inner), pack.put(way.inner.clamp(min=0))]
            return ["composed", packed_way(way.first, pack), packed_way(way.then, pack), inner]
        case Reordered():
            return ["reordered", packed_way(way.way, pack), pack.put(way.order), way.inner]


def _affine(read: Unpacker, size: Any, stride: Any, offset: Any, step: Any, table: Any) -> Way:
    numbers = [*stride, offset, step]
    if len(stride) != len(size) or not all(type(n) is int and abs(n) < FAR for n in numbers):
        raise ValueError("strides that are none")
    found = None if table is None else _tensor(read, table)
    if found is not None and not len(found):
        raise ValueError("an empty table")
    return Affine(shape(size), tuple(stride), offset, step, None if found is None else lambda: found)


def _table(read: Unpacker, index: Any) -> Way:
    found = _tensor(read, index)
    return Table(lambda: found)


def _sought(read: Unpacker, rows: Any, order: Any, width: Any) -> Way:
    found = _tensor(read, rows), _tensor(read, order)
    if not len(found[0]) or len(found[0]) != len(found[1]):
        raise ValueError("rows without an order")
    return Sought(*found, max(count(width), 1))


def _shared(read: Unpacker, place: Any, width: Any) -> Way:
    return Shared(_tensor(read, place), max(count(width), 1))


def _composed(read: Unpacker, first: Any, then: Any, inner: Any) -> Way:
    found = None if inner is None else _tensor(read, inner[1]).reshape(count(inner[0]), -1)
    return Composed(unpacked_way(first, read), unpacked_way(then, read), found)


def _reordered(read: Unpacker, way: Any, order: Any, inner: Any) -> Way:
    found = _tensor(read, order)
    if not len(found) or not count(inner):
        raise ValueError("an order of nothing")
    return Reordered(unpacked_way(way, read), found, inner)


WAYS: dict[str, Callable[..., Way]] = {
    "affine": _affine,
    "table": _table,
    "sought": _sought,
    "shared": _shared,
    "raw": lambda read: Raw(),
    "composed": _composed,
    "reordered": _reordered,
}


def _tensor(read: Unpacker, ref: Any) -> Tensor:
    return torch.from_numpy(read.whole(ref))


def unpacked_way(given: Any, read: Unpacker) -> Way:
    """Make a way of what `packed_way` gave.

    Raises:
        KeyError, TypeError, ValueError: it is nothing of that.
    """
    return WAYS[given[0]](read, *given[1:])


def packed(winners: Winners, kept: np.ndarray, owner: dict[int, int], pack: Packer) -> dict[str, Any]:
    """Describe a value's winners.

    Args:
        kept: flat positions, batch × shape, of the scalars through which leaves' paths run.
        owner: whose winners they are, by their identity: the number of the value.
    """
    about: dict[str, Any] = {"edges": [_edge(edge, pack) for edge in winners.edges]}
    if isinstance(winners, Borrowed):
        link = winners.link
        about["borrowed"] = None if link is None else [owner[id(link[0])], *link[1:]]
        return about
    choice, index, terms = winners.planes()
    rows, positions = map(torch.from_numpy, np.divmod(kept.astype(np.int64), max(prod(winners.shape), 1)))
    for name, plane in ("choice", choice), ("index", index):
        if plane is not None:
            about[name] = pack.put(pick(plane, rows, positions, winners.shape).clamp(min=0))
    if terms is not None:
        about["terms"] = [pack.put(terms[0]), pack.put(terms[1])]
    return about


def _edge(edge: Use, pack: Packer) -> list[Any]:
    call = edge.target.call
    assert call is not None
    output = next(n for n, made in enumerate(call.outputs) if made is edge.target)
    return [call.index, edge.first >> EDGE_BITS, output, edge.split, packed_way(edge.way, pack)]


def unpacked(value: Value, about: dict[str, Any], kept: Some, batch: int, forest: Forest, read: Unpacker) -> Winners:
    """Make winners of what `packed` gave; those that are borrowed know nobody yet.

    Raises:
        KeyError, TypeError, ValueError: it is nothing of that, or leads nowhere.
    """
    edges = [_use(value, given, forest, batch, read) for given in about["edges"]]
    if not edges:
        raise ValueError("winners without an edge")
    if "borrowed" in about:
        return Borrowed(value.shape, edges)
    out = Winners(value.shape, edges)
    stored = None
    if "index" in about:
        stored = read.whole(about["index"], kept.count, 1 << 31)
        out.index = _plane(stored, kept, batch, value.shape, (torch.int16, SHORT), read)
    if "choice" in about:
        chosen = read.whole(about["choice"], kept.count, len(edges))
        out.choice = _plane(chosen, kept, batch, value.shape, (torch.uint8, BYTE), read)
    elif "terms" in about and stored is not None:
        out.terms = _terms(about["terms"], stored, len(edges), read)
        chosen, stored = (t.numpy()[stored] for t in out.terms)
    else:
        chosen = np.zeros(kept.count, np.int64)
    _check(out, chosen, stored, alone="choice" not in about and out.terms is None)
    return out


def _use(value: Value, given: Any, forest: Forest, batch: int, read: Unpacker) -> Use:
    """Make an edge, which has to enter a later call at a position where the value is."""
    number, edge, output, split, way = given
    call = item(forest.record.calls, number)
    target = item(call.outputs, output)
    argument = count(edge) - forest.edges.first[call.index]
    if target is None or item(call.inputs, argument).value is not value:
        raise ValueError(f"an edge from {value} that there is not")
    use = Use((edge << EDGE_BITS) + offsets(call)[output], target, unpacked_way(way, read), bool(split))
    if isinstance(use.way, Affine) and prod(use.way.shape) != value.numel * (batch if use.split else 1):
        raise ValueError(f"a way from {value} that has another shape")
    return use


def _terms(given: Any, stored: np.ndarray, edges: int, read: Unpacker) -> tuple[Tensor, Tensor]:
    ordinal = read.whole(given[0], None, edges)
    local = read.whole(given[1], len(ordinal))
    if not len(ordinal) or (len(stored) and stored.max() >= len(ordinal)):
        raise ValueError("winners of a product that there is not")
    return torch.from_numpy(ordinal), torch.from_numpy(local)


def _check(winners: Winners, chosen: np.ndarray, stored: np.ndarray | None, *, alone: bool) -> None:
    """See that what is stored is there to be looked up, and that a way that is seen by strides can be."""
    if alone and len(winners.edges) > 1:
        raise ValueError("several edges, and no choice among them")
    for ordinal, edge in enumerate(winners.edges):
        if edge.way.stored and stored is None:
            raise ValueError("a way that needs a stored number")
        way = edge.way
        if isinstance(way, Affine) and not way.stored and any(step < 0 for step in way.stride):
            raise ValueError("a stride below 0")
        if isinstance(way, Affine) and way.table is not None and stored is not None:
            here = stored[chosen == ordinal]
            if len(here) and here.max() >= len(way.table()):
                raise ValueError("a stored number beyond its table")


def _plane(
    stored: np.ndarray, kept: Some, batch: int, size: Sequence[int], small: tuple[torch.dtype, int], read: Unpacker
) -> Tensor:
    """Lay numbers out, batch × shape; where there are none, one 0 stands for all of them."""
    most = int(stored.max()) if len(stored) else 0
    kind = small[0] if most < small[1] else torch.int32
    if not most:
        return torch.zeros((), dtype=kind).expand(batch, *size)
    out = torch.zeros(read.room(batch * prod(size), kind.itemsize), dtype=kind)
    out[torch.from_numpy(kept.positions().astype(np.int64))] = torch.from_numpy(stored).to(kind)
    return out.reshape(batch, *size)


def lend(winners: dict[int, Winners], borrowed: dict[int, Any]) -> None:
    """Tell borrowed winners whose serve.

    Args:
        winners: by the number of their value.
        borrowed: of those, [whose, ordinal, the order of its axes].

    Raises:
        KeyError, TypeError, ValueError: there are no such winners.
    """
    for number, link in borrowed.items():
        mine = winners[number]
        if link is None:
            continue
        lender, order = winners[link[0]], tuple(link[2])
        seen = [mine.shape[d] for d in order] if sorted(order) == [*range(len(mine.shape))] else None
        if not isinstance(mine, Borrowed) or isinstance(lender, Borrowed) or seen != [*lender.shape]:
            raise ValueError("winners that cannot be borrowed")
        item(lender.edges, link[1])
        mine.borrow(lender, link[1], order)


def check_ways(winners: dict[int, Winners], batch: Callable[[int], int], read: Unpacker) -> None:
    """Go every way from all scalars once, those without a path too: queries do, though it means nothing.

    Raises:
        ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError: one leads nowhere.
    """
    for number, mine in winners.items():
        numel = prod(mine.shape)
        for ordinal, edge in enumerate(mine.edges):
            then = winners.get(edge.target.id)
            if isinstance(then, Borrowed):
                through(edge, then.edges[0])
            if isinstance(edge.way, (Affine, Raw)) or not numel:
                continue
            for row in range(batch(number) if read.fits(numel, 64) else 0):
                raw = None
                if edge.way.stored:
                    chosen, raw = mine.at(row, torch.arange(numel))
                    if raw is not None and len(mine.edges) > 1:
                        raw = raw.masked_fill(chosen != ordinal, 0)
                edge.all_places(None if raw is None else raw.numpy(), row, numel)
