"""Components: named sets of vertices that a path may cross.

A component is a string, the results of all calls made inside a module (by qualified name, by glob, or one call
of it, "rnn:2") or inside a `component` block, or of all calls of an operator ("aten::addmm"); or a `Slice` of the
results of a module, such as one attention head.
A module that calls no operator (an nn.Identity, dropout that is off) has no vertices, so no path crosses it. That is
not so of a module whose calls were not seen: one inside a scripted module, or one that is used without being called
(by its weight, by its `forward`). Its operators are on the tape under other names, and no share can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import BadArgument, NotSeen, UnknownName
from .record import Call, Record, Scope, Value


@dataclass(frozen=True)
class Slice:
    """One index along an axis of the results of a module: an attention head, an expert.

    Attributes:
        module: a module's name, a glob, or one call of it; or the name of a parameter (expert weights).
        axis: the axis; "head" stands for that of the products and softmaxes of attention, which are batch × head
            × time × time or size (or batch·head first), and which every path through a head crosses.
        of: the size of the axis; results of another size there are not meant.
        index: which one; None stands for all of them, one component each.

    >>> str(Slice("h.0.attn", axis="head", of=12, index=3))
    'h.0.attn[head 3]'
    """

    module: str
    axis: int | str
    of: int
    index: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.axis, str) and self.axis != "head":
            raise BadArgument(f"the axis of a Slice is a number or 'head', not {self.axis!r}")
        numbers = [self.of, *(() if self.index is None else (self.index,))]
        if not isinstance(self.module, str) or not all(isinstance(n, int) for n in numbers):
            raise BadArgument(f"a Slice takes a name, an axis, and whole numbers as its size and index, not {self}")
        if self.of < 1 or (self.index is not None and not 0 <= self.index < self.of):
            raise BadArgument(f"Slice({self.module!r}): index {self.index} is not one of {self.of}")

    def __str__(self) -> str:
        axis = self.axis if isinstance(self.axis, str) else f"axis {self.axis}:"
        return f"{self.module}[{axis} {'*' if self.index is None else self.index}]"

    def mask(self, shape: tuple[int, ...], call: Call | None = None) -> Tensor | None:
        """Give which scalars of a call's result, or a leaf, are meant, broadcasting to its shape; None if none is."""
        axis = self._axis_of(shape, call)
        if axis is None:
            return None
        size = [1] * len(shape)
        size[axis] = shape[axis]
        return (torch.arange(shape[axis]) % self.of == self.index).reshape(size)

    def _axis_of(self, shape: tuple[int, ...], call: Call | None) -> int | None:
        if isinstance(self.axis, int):
            there = -len(shape) <= self.axis < len(shape) and shape[self.axis] == self.of
            return self.axis if there else None
        if call is None or not _of_attention(call):
            return None
        if len(shape) == 4:
            return 1 if shape[1] == self.of else None
        # batch and head may be one axis, the head running faster
        return 0 if len(shape) == 3 and shape[0] % self.of == 0 else None


def _of_attention(call: Call) -> bool:
    """Tell whether a call is a softmax or a batched product, or gives one its shape: there the head has an axis."""
    if call.base in ("_softmax", "_safe_softmax", "bmm", "baddbmm"):
        return True
    source = call.inputs[0].value if call.base in ("view", "_unsafe_view") else None
    return source is not None and source.call is not None and source.call.base in ("bmm", "baddbmm")


Component: TypeAlias = str | Slice
OPERATOR = "::"  # stands in no module's name
UNSEEN = (
    "no call of it was seen (scripted and traced modules call none of theirs, and one that is used by its weight or "
    "its forward() alone is not called): what it computed is on the tape under another name, or not at all"
)


def heads(model: nn.Module) -> list[Slice]:
    """Find the attention heads of a model: one `Slice` for each head of each attention module.

    Modules that know their number of heads (num_heads, num_attention_heads, n_heads, n_head), as those of
    torch and of transformers do, count as attention modules.
    """
    found: list[Slice] = []
    for name, module in model.named_modules():
        count = _head_count(module)
        if name and count and not any(name.startswith(f"{s.module}.") for s in found):
            found.append(Slice(name, "head", count))
    return [replace(s, index=i) for s in found for i in range(s.of)]


def _head_count(module: nn.Module) -> int | None:
    if "attention" not in type(module).__name__.lower() and "attn" not in type(module).__name__.lower():
        return None
    own = [module, getattr(module, "config", None)]
    names = ("num_heads", "num_attention_heads", "n_heads", "n_head")
    counts = (getattr(holder, n, None) for holder in own for n in names)
    return next((c for c in counts if isinstance(c, int)), None)


def expand(components: Iterable[Component]) -> list[Component]:
    """Replace slices without an index by one slice for each index."""
    out: list[Component] = []
    for c in components:
        whole = isinstance(c, Slice) and c.index is None
        out += [replace(c, index=i) for i in range(c.of)] if whole else [c]  # type: ignore[union-attr,type-var]
    return out


def name_of(component: Component) -> str:
    """Give the module name, glob or parameter name that a component starts from."""
    return component.module if isinstance(component, Slice) else component


def matches(call: Call, pattern: str) -> bool:
    """Tell whether a call was made inside a component: a name, a glob, one call of a module, or an operator."""
    if OPERATOR in pattern:
        return operator_of(call) == pattern
    return any(fnmatchcase(s.name, pattern) or f"{s.name}:{s.instance}" == pattern for s in call.scopes)


def operator_of(call: Call) -> str:
    """Give the name by which all calls of an operator are a component, PyTorch's own: "aten::addmm"."""
    space, _, rest = call.name.partition(".")
    return f"{space}{OPERATOR}{rest.partition('.')[0]}"


def operators(calls: Iterable[Call]) -> list[str]:
    """List the operators that compute something on the way (views only move scalars), in order of use."""
    computing = [c for c in calls if not getattr(c.op, "is_view", False)]
    followed = [c for c in computing if any(v is not None and v.differentiable for v in c.outputs)]
    return list(dict.fromkeys(map(operator_of, followed)))


class Membership:
    """Which of some components calls are in, as bits. Every scope is looked at once, and a plain name is looked up."""

    def __init__(self, components: Sequence[Component]) -> None:
        self._named: dict[str, int] = {}
        self._operators: dict[str, int] = {}
        for number, component in enumerate(components):
            pattern = name_of(component)
            if OPERATOR in pattern:
                self._operators[pattern] = self._operators.get(pattern, 0) | 1 << number
                continue
            self._named[pattern] = self._named.get(pattern, 0) | 1 << number
        self._globs = [pattern for pattern in self._named if is_glob(pattern)]
        self._scopes: dict[Scope, int] = {}

    def of(self, call: Call) -> int:
        """Give the components that a call is in (bit i for number i): see `matches`."""
        found = self._operators.get(operator_of(call), 0) if self._operators else 0
        for scope in call.scopes:
            if scope not in self._scopes:
                self._scopes[scope] = self._of_scope(scope)
            found |= self._scopes[scope]
        return found

    def _of_scope(self, scope: Scope) -> int:
        found = self._named.get(f"{scope.name}:{scope.instance}", 0)
        if not is_glob(scope.name):
            found |= self._named.get(scope.name, 0)
        for pattern in self._globs:
            if fnmatchcase(scope.name, pattern):
                found |= self._named[pattern]
        return found


def is_glob(pattern: str) -> bool:
    """Tell whether a pattern stands for other names than itself."""
    return any(c in pattern for c in "*?[")


def seen(record: Record, component: Component) -> bool:
    """Tell whether a component's calls were seen, be it that they ran no operator, or that there were none to see."""
    name = name_of(component)
    if OPERATOR in name or name in record.leaves or name in record.called:
        return True
    module, colon, number = name.rpartition(":")
    if colon and module in record.called:
        return number.isdigit() and 1 <= int(number) <= record.called[module]
    if any(fnmatchcase(n, name) for n in record.called if n):
        return True
    meant = [m for m in record.modules if fnmatchcase(m, name) or m == name]
    return bool(meant) and all(_idle(record, m) for m in meant)


def _idle(record: Record, module: str) -> bool:
    """Tell whether a module did nothing: it was not called, and nobody used the parameters that it has."""
    own = {v.id for name, v in record.leaves.items() if name.startswith(f"{module}.")}
    used = {i.value.id for call in record.calls for i in call.inputs if i.value is not None}
    return bool(own) and not own & used


def must_be_seen(record: Record, components: Iterable[Component]) -> None:
    """Make sure that something can be said of every component.

    Raises:
        NotSeen: of one nothing can.
    """
    for component in components:
        if not seen(record, component):
            raise NotSeen(f"{component} exists, but {UNSEEN}")


def known_components(record: Record) -> list[str]:
    """List the names of modules and component blocks."""
    return sorted({n for n in record.called if n} | set(record.modules))


def top_level(record: Record) -> list[str]:
    """List the outermost modules and blocks in which calls were made."""
    return list(dict.fromkeys(call.scopes[0].name for call in record.calls if call.scopes))


def default_components(record: Record) -> list[str]:
    """List what is asked about where nobody says: the outermost modules and blocks, or, without any, the operators."""
    return top_level(record) or operators(record.calls)


def select_leaves(record: Record, of: str | Sequence[str]) -> list[Value]:
    """Give the leaves whose names match a glob (or one of several).

    Raises:
        UnknownName: nothing matches; the message lists the names.
    """
    patterns = [of] if isinstance(of, str) else list(of) if isinstance(of, Iterable) else []
    if not patterns or not all(isinstance(p, str) for p in patterns):
        raise BadArgument(f"of must be a glob over parameter names, or several, not {of!r}")
    names = {**{n: n for n in record.leaves}, **record.aliases}
    exact, globs = set(patterns), [p for p in dict.fromkeys(patterns) if is_glob(p)]
    found = {record.leaves[real].id: record.leaves[real] for n, real in names.items() if n in exact or _any(n, globs)}
    if not found:
        frozen = [n for n in sorted(record.frozen) if n in exact or _any(n, globs)]
        if frozen:
            raise UnknownName(f"{names_listed(frozen, 5)}: frozen (requires_grad is False), so no gradient reaches it")
        raise UnknownName(f"no parameter matches {of!r}; there are {names_listed(names) or 'none'}")
    return list(found.values())


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _any_of(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) or name == pattern for name in names)


def names_listed(names: Iterable[str], most: int = 30) -> str:
    """Write names in a line, the first of very many."""
    names = list(names)
    return ", ".join(names[:most]) + (f", … ({len(names) - most} more)" if len(names) > most else "")


def check(record: Record, components: Sequence[Component]) -> None:
    """Make sure that every component exists.

    Raises:
        UnknownName: one does not; the message lists those that do.
    """
    known = {*record.modules, *record.leaves, *record.called}
    ran = set(map(operator_of, record.calls))
    for component in components:
        name = name_of(component)
        exists = name in ran if OPERATOR in name else seen(record, component) or _any_of(known, name)
        if not exists:
            there = known_components(record) or operators(record.calls)
            raise UnknownName(f"unknown component {name!r}; there are {names_listed(there) or 'none'}")
        if isinstance(component, Slice) and not _exists(record, component):
            raise UnknownName(
                f"{component}: no result in {name!r} has {component.of} along its axis {component.axis!r}"
            )


def _exists(record: Record, part: Slice) -> bool:
    """Tell whether a slice means any scalar at all."""
    leaf = record.leaves.get(part.module)
    if leaf is not None and part.mask(leaf.shape) is not None:
        return True
    calls = [c for c in record.calls if matches(c, part.module)]
    return not calls or any(part.mask(v.shape, c) is not None for c in calls for v in c.outputs if v is not None)
