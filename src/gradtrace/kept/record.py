"""A record without its numbers: calls, values, names and scopes, as JSON and back.

What comes from a file is looked at before it is believed: every number points at something that is there, values go
from earlier calls to later ones, and each is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import torch

from ..backward.walk import EDGE_BITS
from ..recording.record import HERE, Call, Gone, Input, Record, Scope, Value

Item = TypeVar("Item")
MOST = 1 << EDGE_BITS  # scalars of one value


class Texts:
    """Texts by number, each once: names and lines of code come again and again."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __call__(self, text: Any) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def described(record: Record, root: Value) -> tuple[dict[str, Any], list[Value]]:
    """Describe a record.

    Returns:
        JSON, and the values that it speaks of: those are known by their number in this list.
    """
    met = {v.id: v for call in record.calls for v in (*(i.value for i in call.inputs), *call.outputs) if v is not None}
    met |= {v.id: v for v in (root, *record.leaves.values())}
    values = [met[number] for number in sorted(met)]
    row = {value.id: n for n, value in enumerate(values)}
    texts, scopes = Texts(), Texts()
    calls = [described_call(call, row, texts, scopes) for call in record.calls]
    about = {
        "values": [
            [list(v.shape), str(v.dtype).removeprefix("torch."), v.differentiable, texts(v.name or "")] for v in values
        ],
        "calls": calls,
        "scopes": [[texts(s.name), s.instance] for s in scopes.numbers],
        "leaves": [[texts(name), row[v.id]] for name, v in record.leaves.items()],
        "root": row[root.id],
        "aliases": record.aliases,
        "frozen": sorted(record.frozen),
        "derived": sorted(record.derived),
        "modules": list(record.modules),
        "called": record.called,
        "examples": record.examples,
    }
    return about | {"texts": list(texts.numbers)}, values


def described_call(call: Call, row: dict[int, int], texts: Texts, scopes: Texts) -> list[Any]:
    """Describe a call: its operator's names, where it ran, and the values that went in and came out."""
    return [
        texts(call.name),
        texts(call.base),
        bool(getattr(call.op, "is_view", False)),
        texts(call.source),
        [scopes(scope) for scope in call.scopes],
        [-1 if i.value is None else row.get(i.value.id, -1) for i in call.inputs],
        [-1 if v is None else row.get(v.id, -1) for v in call.outputs],
    ]


def item(items: Sequence[Item], number: Any) -> Item:
    """Give one of some things by its number, from 0 on.

    Raises:
        ValueError: there is none of that number.
    """
    if type(number) is not int or not 0 <= number < len(items):
        raise ValueError(f"number {number!r} of {len(items)}")
    return items[number]


def text(given: Any) -> str:
    """Take a text.

    Raises:
        ValueError: it is none.
    """
    if type(given) is not str:
        raise ValueError(f"{given!r} is not a text")
    return given


def count(given: Any, most: int = MOST) -> int:
    """Take a whole number from 0 on.

    Raises:
        ValueError: it is none.
    """
    if type(given) is not int or not 0 <= given <= most:
        raise ValueError(f"{given!r} is not a whole number up to {most}")
    return given


def shape(given: Any) -> tuple[int, ...]:
    """Take a shape.

    Raises:
        ValueError: it is none, or one of too many scalars.
    """
    sizes = tuple(map(count, given))
    count(prod(sizes))
    return sizes


def restored(about: dict[str, Any]) -> tuple[Record, Value, list[Value]]:
    """Make a record of what `described` gave: its calls run nothing.

    Returns:
        the record, the loss's value, and all values by their numbers.

    Raises:
        KeyError, TypeError, ValueError: it is nothing that `described` gives.
    """
    texts = [text(t) for t in about["texts"]]
    values = [_value(n, given, texts) for n, given in enumerate(about["values"])]
    scopes = [Scope(item(texts, name), count(instance)) for name, instance in about["scopes"]]
    met: set[int] = set()
    calls = [restored_call(n, given, values, texts, scopes, met) for n, given in enumerate(about["calls"])]
    leaves = {item(texts, name): item(values, n) for name, n in about["leaves"]}
    if any(v.call is not None or v.name is None for v in leaves.values()):
        raise ValueError("a leaf that a call has made")
    record = Record(
        calls=calls,
        leaves=leaves,
        aliases={text(k): text(v) for k, v in about["aliases"].items()},
        frozen=set(map(text, about["frozen"])),
        derived=set(map(text, about["derived"])),
        modules=tuple(map(text, about["modules"])),
        called={text(k): count(n) for k, n in about["called"].items()},
        examples=None if about["examples"] is None else count(about["examples"]),
        count=len(values),
    )
    if not set(record.aliases.values()) <= set(leaves) | record.frozen:
        raise ValueError("a further name of no parameter")
    return record, item(values, about["root"]), values


def _value(number: int, given: Any, texts: Sequence[str]) -> Value:
    sizes, kind, differentiable, name = given
    dtype = getattr(torch, text(kind), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"numbers of the kind {kind!r}")
    return Value(number, shape(sizes), dtype, item(texts, name) or None, bool(differentiable))


def restored_call(
    number: int, given: Any, values: Sequence[Value], texts: Sequence[str], scopes: Sequence[Scope], met: set[int]
) -> Call:
    """Make a call of what `described_call` gave.

    Args:
        met: numbers of the values that calls have taken or made so far: none of them is made once more.
    """
    name, base, is_view, source, around, inputs, outputs = given
    inside = [None if n == -1 else item(values, n) for n in inputs]
    out = [None if n == -1 else item(values, n) for n in outputs]
    call = Call(
        number,
        Gone(item(texts, name), bool(is_view)),
        item(texts, name),
        item(texts, base),
        tuple(_input(value) for value in inside),
        (),
        {},
        tuple(item(scopes, n) for n in around),
        item(texts, source),
        outputs=tuple(out),
    )
    met.update(v.id for v in inside if v is not None)
    for value in out:
        if value is None:
            continue
        if value.id in met or value.name is not None:
            raise ValueError(f"value {value.id} is made twice, or after it was taken")
        met.add(value.id)
        value.call = call
    return call


def _input(value: Value | None) -> Input:
    kind = torch.float32 if value is None else value.dtype
    return Input(value, () if value is None else value.shape, (), 0, kind, HERE, None)
