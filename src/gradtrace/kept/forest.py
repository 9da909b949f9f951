"""A forest of winners as JSON and arrays, and back: what is stored of the scalars through which leaves' paths run.

Weights are kept of leaves. The local derivative is kept of every step that is on a leaf's path, and of no other: with
it a path is read without the tensors from which derivatives are made. Reading goes every path once, so that nothing is
asked later for what a file does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Rows
from ..backward.best import Best
from ..backward.example_labels import Labels
from ..backward.walk import EDGE_BITS, Edges
from ..errors import NotKept
from ..jacobians.structure import Structure
from ..kernels.entry import entries
from ..kernels.shared_exponent import Plane
from ..queries.consumers import Consumers, Part
from ..queries.forest import KINDS, NONE, Forest, over
from ..queries.paths import Reader
from ..recording.record import Call, Gone, Record, Scope, Value
from . import structures as kept_structures
from . import winners as kept_winners
from .blobs import Packer, Some, Unpacker
from .record import count, item, shape, text

BLOCK = 1 << 20  # scalars whose steps are read at a time
FARTHEST = 1 << 20  # no exponent is as large
MANY = 1 << 16  # examples that any file may have; more only if it has a byte for each


class Derivatives:
    """Local derivatives along kept paths: by value numbers of some scalars, rows × shape, or structures by step."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Some, np.ndarray]] = {}
        self.structures: dict[int, dict[kept_structures.Step, Structure]] = {}

    def add(self, value: Value, kept: Some, numbers: np.ndarray) -> None:
        """Know those of a value's scalars."""
        self._numbers[value.id] = kept, numbers

    def of(
        self, value: Value, row: Rows, flats: np.ndarray, step: kept_structures.Step, there: np.ndarray
    ) -> np.ndarray:
        """Give those of some scalars, each towards the scalar through which its path goes on."""
        if value.id in self.structures:
            return entries(self.structures[value.id][step], there, flats)
        kept, numbers = self._numbers[value.id]
        return numbers[kept.rank(row * value.numel + flats)].astype(np.float64)


def values_in_order(forest: Forest, known: Callable[[Value], bool]) -> Iterator[Value]:
    """Give leaves, then what calls have made in their order, so that a path goes from earlier ones to later ones."""
    made = (v for call in forest.record.calls for v in call.outputs if v is not None)
    for value in (*forest.record.leaves.values(), *made):
        if known(value):
            yield value


def steps(forest: Forest, value: Value, kept: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Part]]:
    """Tell where some scalars (rows × shape) go on: (their numbers among these, rows, flat positions, the edge)."""
    consumers, numel = Consumers(forest), max(value.numel, 1)
    for begin in range(0, len(kept), BLOCK):
        rows, flats = np.divmod(kept[begin : begin + BLOCK].astype(np.int64), numel)
        for part in consumers.of(value, rows, flats):
            which = np.arange(len(rows)) if part.which is None else part.which
            yield begin + which, rows[which], flats[which], part


# ---------------------------------------------------------------- to a file


def packed(forest: Forest, row: dict[int, int], pack: Packer) -> dict[str, Any]:
    """Describe a forest.

    Args:
        row: the number by which each value is known, by its id.
    """
    found = forest.compact
    ids = set(forest.winners if found is None else [*found.winners, *found.planes])
    owner = {} if found is None else {id(w): row[i] for i, w in found.winners.items()}
    reached: dict[int, np.ndarray] = {}
    reader, values = Reader(forest), []
    for value in values_in_order(forest, lambda v: v.id in ids):
        end = value.call is None or value is forest.loss
        if end:
            kept = np.flatnonzero(_live(forest, value).numpy())
        else:
            there = reached.pop(value.id, None)
            kept = np.zeros(0, np.int64) if there is None else np.flatnonzero(there)
        about = {"value": row[value.id], "kept": pack.some(kept, forest.batch(value) * value.numel)}
        if value is not forest.loss:
            about |= _derivatives(forest, reader, value, kept, reached, pack)
            about |= _winners(forest, value, kept, owner, pack)
        if end:
            about |= _weights(forest, value, kept, pack)
        values.append(about)
    return {
        "kind": forest.kind,
        "compact": found is not None,
        "labels": None if forest.labels is None else _packed_labels(forest.labels, forest.record, row, pack),
        "seconds": forest.seconds,
        "values": values,
    }


def _live(forest: Forest, leaf: Value) -> Tensor:
    """Tell which scalars of a leaf have a trace, rows × shape, flat."""
    if forest.compact is not None:
        return (forest.compact.planes[leaf.id].data > 0).reshape(-1)
    return torch.ones(1, dtype=torch.bool) if leaf is forest.loss else (forest.winners[leaf.id] != NONE).reshape(-1)


def _derivatives(
    forest: Forest, reader: Reader, value: Value, kept: np.ndarray, reached: dict[int, np.ndarray], pack: Packer
) -> dict[str, Any]:
    """Describe the derivatives of a step from some scalars, and mark the scalars to which it leads."""
    out = np.zeros(len(kept))
    structures: dict[kept_structures.Step, list[Structure]] = {}
    for which, rows, flats, part in steps(forest, value, kept):
        out[which] = reader.along(value, rows, flats, part)
        target, batch = part.target, forest.batch(part.target)
        step = part.call.index, part.argument, part.output
        if step not in structures:
            structures[step] = _structures(forest, reader, value, part)
        if target is not forest.loss:
            if target.id not in reached:
                reached[target.id] = np.zeros(batch * target.numel, bool)
            reached[target.id][(rows if batch > 1 else 0) * target.numel + part.flat] = True
    several = bool(len(out)) and bool((out != out[0]).any())
    if several and all(len(found) == 1 for found in structures.values()):
        about = kept_structures.packed({step: found[0] for step, found in structures.items()}, len(kept), pack)
        if about is not None:
            return {"structures": about}
    return {"derivative": pack.put(out)}


def _structures(forest: Forest, reader: Reader, value: Value, part: Part) -> list[Structure]:
    """Give the structures of a step, if the tape is there, or those that were kept."""
    known, step = forest.derivatives, (part.call.index, part.argument, part.output)
    if known is None:
        return reader.structures(part.call, *step[1:])
    found = known.structures.get(value.id, {}).get(step) if isinstance(known, Derivatives) else None
    return [] if found is None else [found]


def _winners(forest: Forest, value: Value, kept: np.ndarray, owner: dict[int, int], pack: Packer) -> dict[str, Any]:
    if forest.compact is not None:
        return kept_winners.packed(forest.compact.winners[value.id], kept, owner, pack)
    pointers = forest.winners[value.id].reshape(-1).numpy()[kept]
    return {"pointers": [pack.put(pointers >> EDGE_BITS), pack.put(pointers & ((1 << EDGE_BITS) - 1))]}


def _weights(forest: Forest, leaf: Value, kept: np.ndarray, pack: Packer) -> dict[str, Any]:
    if forest.compact is None:
        return {"log2": pack.put(forest.log2[leaf.id].reshape(-1).numpy()[kept])}
    plane = forest.compact.weights[leaf.id]
    numbers, stride = plane.data.reshape(-1).numpy()[kept], plane.data.stride()[1:]
    order = sorted(range(len(stride)), key=lambda d: -stride[d])  # sums go through weights as they lie in memory
    about = {"weight": pack.put(numbers), "double": plane.dtype is torch.float64, "exponent": plane.exponent}
    return about | ({} if order == [*range(len(order))] else {"axes": order})


def _packed_labels(labels: Labels, record: Record, row: dict[int, int], pack: Packer) -> dict[str, Any]:
    own = {row[v.id]: label for v in record.leaves.values() if isinstance(label := labels.of.get(v.id), Tensor)}
    return {
        "count": labels.count,
        "together": sorted(row[i] for i in labels.together if i in row),
        "connected": [[c.index, c.name, c.source, [[s.name, s.instance] for s in c.scopes]] for c in labels.connected],
        "of": [[n, list(label.shape), pack.put(label)] for n, label in own.items()],
    }


# ---------------------------------------------------------------- from a file


def unpacked(about: dict[str, Any], record: Record, root: Value, values: Sequence[Value], read: Unpacker) -> Forest:
    """Make a forest of what `packed` gave.

    Raises:
        LookupError, RuntimeError, TypeError, ValueError, NotKept, …: it is nothing of that.
    """
    kind = text(about["kind"])
    if kind not in KINDS:
        raise ValueError(f"a forest of kind {kind!r}")
    labels = None if about["labels"] is None else _unpacked_labels(about["labels"], record, values, read)
    forest = Forest(record, root, kind, labels, Edges.of(record))
    seconds = {text(name): float(s) for name, s in about["seconds"].items()}
    abouts = {item(values, given["value"]).id: given for given in about["values"]}
    kept = {
        n: read.some(given["kept"], read.fits(forest.batch(values[n]) * values[n].numel)) for n, given in abouts.items()
    }
    known = forest.derivatives = Derivatives()
    for n, given in abouts.items():
        if "structures" in given:
            known.structures[n] = kept_structures.unpacked(given["structures"], values[n], read, _target_in(record))
        elif values[n] is not root:
            known.add(values[n], kept[n], _finite(read.get(given["derivative"], kept[n].count)))
    fill = _compact if about["compact"] else _pointed
    fill(forest, abouts, kept, values, read)
    forest.seconds = seconds
    _follow_all(forest, kept, known)
    return forest


def _target_in(record: Record) -> Callable[[kept_structures.Step], Value]:
    def target(step: kept_structures.Step) -> Value:
        found = item(item(record.calls, step[0]).outputs, step[2])
        if found is None:
            raise ValueError("a step to nowhere")
        return found

    return target


def _finite(numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype.kind not in "iuf" or np.isnan(numbers).any():
        raise ValueError("derivatives that are no numbers")
    return numbers


def _compact(
    forest: Forest, abouts: dict[int, Any], kept: dict[int, Some], values: Sequence[Value], read: Unpacker
) -> None:
    found = Best(gradients={} if forest.kind == "greedy" else None)
    borrowed = {}
    for n, given in abouts.items():
        value, batch = values[n], forest.batch(values[n])
        if value is not forest.loss:
            found.winners[n] = kept_winners.unpacked(value, given, kept[n], batch, forest, read)
        if "borrowed" in given:
            borrowed[n] = given["borrowed"]
        if value.call is None or value is forest.loss:
            _plane_of_leaf(found, value, given, kept[n], batch, read)
    kept_winners.lend(found.winners, borrowed)
    kept_winners.check_ways(found.winners, lambda n: forest.batch(values[n]), read)
    if not {e.target.id for w in found.winners.values() for e in w.edges} <= {*found.winners, forest.loss.id}:
        raise ValueError("a way to where nothing goes on")
    over(forest, found, _again)


def _plane_of_leaf(found: Best, leaf: Value, given: Any, kept: Some, batch: int, read: Unpacker) -> None:
    numbers = read.get(given["weight"], kept.count).astype(np.float64 if given["double"] else np.float32)
    least = 0.0 if found.gradients is not None else np.nextafter(0.0, 1.0)
    if not (np.isfinite(numbers).all() and (numbers >= least).all()):
        raise ValueError("weights that are none")
    exponent = given["exponent"]
    if type(exponent) is not int or abs(exponent) > FARTHEST:
        raise ValueError(f"an exponent of {exponent!r}")
    where = torch.from_numpy(kept.positions().astype(np.int64))
    size = batch, *leaf.shape
    data = torch.zeros(read.room(kept.total), dtype=torch.float64 if given["double"] else torch.float32)
    data[where] = torch.from_numpy(numbers)
    order = given.get("axes", [*range(len(leaf.shape))])
    if sorted(order) != [*range(len(leaf.shape))]:
        raise ValueError(f"axes {order!r}")
    rows = [0, *(d + 1 for d in order)]
    laid = data.reshape(size).permute(rows).contiguous().permute([rows.index(d) for d in range(len(rows))])
    plane = Plane(laid, exponent, math.inf, 0.0)
    if found.gradients is None:
        found.planes[leaf.id] = plane
        return
    live = torch.zeros(kept.total)
    live[where] = 1
    found.planes[leaf.id], found.gradients[leaf.id] = Plane(live.reshape(size), 0, 1.0, 1.0), plane


def _again(*args: Any, **kwargs: Any) -> Best:
    """Refuse to run a pass."""
    del args, kwargs
    raise NotKept("a saved trace knows of no scalars but those on the paths of its parameters")


def _pointed(
    forest: Forest, abouts: dict[int, Any], kept: dict[int, Some], values: Sequence[Value], read: Unpacker
) -> None:
    winners, log2 = {}, {}
    for n, given in abouts.items():
        value, some = values[n], kept[n]
        size, where = (forest.batch(value), *value.shape), torch.from_numpy(some.positions().astype(np.int64))
        winners[n] = torch.full((read.room(some.total),), NONE).reshape(size)
        if value is not forest.loss:
            edge, flat = (read.whole(ref, some.count, 1 << EDGE_BITS - 5) for ref in given["pointers"])
            pointers = torch.from_numpy((edge << EDGE_BITS) + flat)
            for pointer in np.unique(edge) << EDGE_BITS:
                call, argument, *_ = forest.step(int(pointer))
                if item(call.inputs, argument).value is not value:
                    raise ValueError(f"an edge from {value} that there is not")
            winners[n].view(-1)[where] = pointers
        if value.call is None or value is forest.loss:
            log2[n] = torch.full(size, -torch.inf, dtype=torch.float64)
            log2[n].view(-1)[where] = torch.from_numpy(read.get(given["log2"], some.count).astype(np.float64))
            if log2[n].isnan().any():
                raise ValueError("weights that are none")
    forest.winners, forest.log2 = winners, log2


def _follow_all(forest: Forest, kept: dict[int, Some], known: Derivatives) -> None:
    """Go all paths, value by value: each step leads to a later call, and to a scalar that is known."""
    for value in values_in_order(forest, lambda v: v.id in kept and v is not forest.loss):
        found = 0
        for which, row, _, part in steps(forest, value, kept[value.id].positions()):
            target, batch, found = part.target, forest.batch(part.target), found + len(which)
            if len(part.flat) and not 0 <= part.flat.min() <= part.flat.max() < target.numel:
                raise ValueError(f"a path from {value} leads out of a result")
            if value.call is not None and value.call.index >= part.call.index:
                raise ValueError(f"a path from {value} leads back")
            step = part.call.index, part.argument, part.output
            if step not in known.structures.get(value.id, (step,)):
                raise ValueError(f"a path from {value} without derivatives")
            if target is not forest.loss:
                kept[target.id].rank((row if batch > 1 else 0) * target.numel + part.flat)
        if found != kept[value.id].count:
            raise ValueError(f"a path from {value} ends before the loss")


def _unpacked_labels(about: dict[str, Any], record: Record, values: Sequence[Value], read: Unpacker) -> Labels:
    labels = Labels(count(about["count"], max(MANY, read.size)))
    if labels.count != record.examples:
        raise ValueError(f"{labels.count} examples of {record.examples}")
    labels.together = {item(values, n).id for n in about["together"]}
    for number, name, source, scopes in about["connected"]:
        around = tuple(Scope(text(s), count(instance)) for s, instance in scopes)
        gone = Gone(text(name), False)
        labels.connected.append(Call(count(number), gone, gone.name, "", (), (), {}, around, text(source)))
    for number, size, ref in about["of"]:
        leaf, sizes = item(values, number), shape(size)
        label = torch.from_numpy(read.get(ref, math.prod(sizes)).astype(np.int32)).reshape(sizes)
        label.expand(leaf.shape)
        labels.of[leaf.id] = label
    return labels
