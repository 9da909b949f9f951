"""Junctions: the calls of a tape at which paths that were apart come together again, found in the graph alone.

A call is one where two of its arguments descend from one value, or leaf: a path from there could have come in by
either. Sums of sums (products of products, lists of lists), whose inner results nobody else reads, are one junction. A
branch is one value that comes in; `branch_names` reads its name off the calls between the fork and there. No call tells
heads apart: they are found as a product's batch that a contraction reads as one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..recording.record import Call, Record, Value

SHUFFLES = frozenset(  # operators that only move scalars
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "contiguous", "clone", "alias", "detach", "_to_copy"),
        *("transpose", "permute", "t", "expand", "unsqueeze", "squeeze", "constant_pad_nd", "lift_fresh"),
        *("copy", "gradtrace.alias", "gradtrace.overlay"),
        *("slice", "select", "unbind", "split", "unsafe_split", "split_with_sizes", "chunk", "flatten", "unflatten"),
    )
)
TOGETHER = {  # operators of which a chain is one junction
    **dict.fromkeys(("add", "sub", "rsub", "index_add", "scatter_add"), "add"),
    **dict.fromkeys(("cat", "stack"), "cat"),
    **{name: name for name in ("mul", "maximum", "minimum")},
}
CONTRACTIONS = frozenset(("mm", "addmm", "linear", "convolution", "matmul"))


@dataclass(frozen=True, eq=False)
class Entry:
    """One value that comes into a junction.

    Attributes:
        arguments: (call number, position) of each place where it does.
    """

    value: Value
    arguments: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Descent:
    """What values descend from, as bits: the leaves first, then the calls by number.

    Attributes:
        of: by value id.
        leaves: by the id of a leaf, the number of its bit.
        calls: by number.
    """

    of: Mapping[int, int]
    leaves: Mapping[int, int]
    calls: Mapping[int, Call]


@dataclass(frozen=True, eq=False)
class Junction:
    """A place at which paths from one value, or leaf, come together again.

    Attributes:
        call: the operator; of several in a chain the last one.
        entries: what comes in; of heads none.
        fork: what all (or most) of the entries descend from: the latest such value.
        calls: the numbers of calls, as bits, from which two or more entries can be reached: paths that enter one of
            them first had a choice.
        leaves: ids of leaves that had the choice themselves.
        common: the numbers of calls, as bits, that all (or else several) of the entries descend from.
        descent: what values on the way to the loss descend from.
        heads: how many heads a batched product keeps apart; 0 where branches are entries.
    """

    call: Call
    entries: tuple[Entry, ...]
    fork: Value
    calls: int
    leaves: frozenset[int]
    common: int
    descent: Descent
    heads: int = 0

    def asks(self, leaf: int, first: int) -> bool:
        """Tell whether a path had a choice, by the id of its leaf and the number of the call that it enters first."""
        return leaf in self.leaves or bool(self.calls >> first & 1)

    def between(self, entry: Entry, most: int) -> tuple[list[Call], bool]:
        """Give the calls that an entry descends from, and not all others, in order; whether all of them are given.

        Those are left out that descend from nothing that the entries have in common, as weights that are seen
        transposed. Of more than `most` the last are given.
        """
        calls, bits = self.descent.calls, self.descent.leaves
        numbers = _ones(self.descent.of[entry.value.id] >> len(bits) & ~self.common)
        if len(numbers) > most:
            return [calls[n] for n in numbers[-most:]], False
        shared = self.common << len(bits)
        for leaf in {*self.leaves, self.fork.id} & bits.keys():
            shared |= 1 << bits[leaf]
        return [calls[n] for n in numbers if self.descent.of[_results(calls[n])[0].id] & shared], True


def junctions(record: Record, loss: Value) -> list[Junction]:
    """Find all junctions on the way to a loss, in recording order."""
    return _Search(record.before(loss)).found


class _Search:
    """Goes through calls in recording order, with what each value descends from, as bits: leaves, then calls."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._readers: dict[int, list[Call]] = {}
        self._leaves: list[Value] = []
        for call in calls:
            for value in _values(call):
                if value.call is None and value.id not in self._readers:
                    self._leaves.append(value)
                self._readers.setdefault(value.id, []).append(call)
        self._calls = {call.index: call for call in calls}
        self._from = {v.id: 1 << n for n, v in enumerate(self._leaves)}
        self._descent = Descent(self._from, {v.id: n for n, v in enumerate(self._leaves)}, self._calls)
        self._inner: dict[int, list[Entry]] = {}  # of calls that are one with their reader, what comes in
        self.found: list[Junction] = []
        for call in calls:
            entries = self._entries(call)
            if self._goes_on(call):
                self._inner[call.index] = entries
            else:
                self.found += self._junction(call, entries)
            self.found += self._heads(call)
            self._descend(call)

    def _descend(self, call: Call) -> None:
        bits = 1 << len(self._leaves) + call.index
        for given in _values(call):
            bits |= self._from[given.id]
        for value in _results(call):
            self._from[value.id] = bits

    def _goes_on(self, call: Call) -> bool:
        """Tell whether a call is one junction with the only reader of its result, which the same module calls."""
        kind, made = TOGETHER.get(call.base), call.outputs[0]
        if kind is None or made is None or len(self._readers.get(made.id, ())) != 1:
            return False
        (reader,) = self._readers[made.id]
        return kind == TOGETHER.get(reader.base) and reader.scopes == call.scopes

    def _entries(self, call: Call) -> list[Entry]:
        """Give what comes into a call, and into those that are one with it; each value once."""
        places, values = dict[int, list[tuple[int, int]]](), dict[int, Value]()
        for position, given in enumerate(call.inputs):
            value = given.value
            if value is None or not value.differentiable:
                continue
            own = [Entry(value, ((call.index, position),))]
            for entry in own if value.call is None else self._inner.pop(value.call.index, own):
                values[entry.value.id] = entry.value
                places.setdefault(entry.value.id, []).extend(entry.arguments)
        return [Entry(v, tuple(places[i])) for i, v in values.items()]

    def _junction(self, call: Call, entries: Sequence[Entry]) -> Iterator[Junction]:
        once = twice = 0
        everywhere = -1
        for entry in entries:
            bits = self._from[entry.value.id]
            once, twice, everywhere = once | bits, twice | (once & bits), everywhere & bits
        if not twice or len(entries) < 2:
            return
        leaves, calls = self._forking_leaves(entries), twice >> len(self._leaves)
        if leaves or calls:
            ids = frozenset(v.id for n, v in enumerate(self._leaves) if leaves >> n & 1)
            shared = everywhere or twice
            common = shared >> len(self._leaves)
            yield Junction(call, tuple(entries), self._latest(shared), calls, ids, common, self._descent)

    def _forking_leaves(self, entries: Sequence[Entry]) -> int:
        """Give the leaves that two entries descend from without a call that both descend from."""
        out, count = 0, len(self._leaves)
        own = (1 << count) - 1
        for n, entry in enumerate(entries):
            bits = self._from[entry.value.id]
            for other in entries[:n]:
                common = bits & self._from[other.value.id]
                if common and not common >> count:
                    out |= common & own
        return out

    def _latest(self, bits: int) -> Value:
        at = bits.bit_length() - 1
        if at < len(self._leaves):
            return self._leaves[at]
        return _results(self._calls[at - len(self._leaves)])[0]

    def _heads(self, call: Call) -> Iterator[Junction]:
        """Find the heads that a batched product keeps apart, until a contraction joins them."""
        count = self._count_of_heads(call)
        before = 0
        for value in _projected(call) if count else ():
            before |= self._from[value.id]
        if calls := before >> len(self._leaves):
            yield Junction(call, (), self._latest(before), calls, frozenset(), 0, self._descent, count)

    def _count_of_heads(self, call: Call) -> int:
        """Tell how many parts of a batched product's batch a contraction reads as one row; 0 if it is not so."""
        made = call.outputs[0]
        if call.base not in ("bmm", "baddbmm") or made is None:
            return 0
        value = made
        while len(readers := self._readers.get(value.id, ())) == 1:
            (later,) = readers
            if later.base in CONTRACTIONS:
                count, rest = divmod(value.shape[-1], made.shape[-1])
                return 0 if rest or count < 2 or made.shape[0] % count else count
            result = later.outputs[0]
            if later.base not in SHUFFLES or result is None or result.numel != made.numel:
                return 0
            value = result
        return 0


def _ones(bits: int) -> list[int]:
    """Give the numbers of the bits that are set, in rising order."""
    given = np.frombuffer(bits.to_bytes(bits.bit_length() // 8 + 1, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(given, bitorder="little")).tolist()


def _results(call: Call) -> list[Value]:
    return [v for v in call.outputs if v is not None]


def _values(call: Call) -> list[Value]:
    """Give the values that a call is given, each once."""
    given = [i.value for i in call.inputs if i.value is not None and i.value.differentiable]
    return list({v.id: v for v in given}.values())


def _projected(call: Call) -> list[Value]:
    """Give what contractions before a batched product were given, besides their weights."""
    out: dict[int, Value] = {}
    seen, waiting = set[int](), _values(call)
    while waiting:
        made = waiting.pop().call
        if made is None or made.index in seen:
            continue
        seen.add(made.index)
        if made.base in CONTRACTIONS:
            out |= {v.id: v for v in _values(made) if not _of_a_leaf(v)}
        else:
            waiting += _values(made)
    return list(out.values())


def _of_a_leaf(value: Value) -> bool:
    """Tell whether a value is a leaf, or one seen otherwise."""
    while value.call is not None:
        given = _values(value.call)
        if value.call.base not in SHUFFLES or len(given) != 1:
            return False
        value = given[0]
    return True
