"""Components: named sets of vertices that a path may cross.

A component is a string, the results of all calls made inside a module (by qualified name, by glob, or one call
of it, "rnn:2") or inside a `component` block; or a `Slice` of the results of a module, such as one attention head.
A module that calls no operator (an nn.Identity, dropout that is off) has no vertices, so no path crosses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..errors import GradtraceError, UnknownName
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
            raise GradtraceError(f"the axis of a Slice is a number or 'head', not {self.axis!r}")
        if self.of < 1 or (self.index is not None and not 0 <= self.index < self.of):
            raise GradtraceError(f"Slice({self.module!r}): index {self.index} is not one of {self.of}")

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
    """Tell whether a call was made inside a component: a name, a glob, or one call of a module ("rnn:2")."""
    return any(fnmatchcase(s.name, pattern) or f"{s.name}:{s.instance}" == pattern for s in call.scopes)


class Membership:
    """Which of some components calls are in, as bits. Every scope is looked at once, and a plain name is looked up."""

    def __init__(self, components: Sequence[Component]) -> None:
        self._named: dict[str, int] = {}
        for number, component in enumerate(components):
            pattern = name_of(component)
            self._named[pattern] = self._named.get(pattern, 0) | 1 << number
        self._globs = [pattern for pattern in self._named if is_glob(pattern)]
        self._scopes: dict[Scope, int] = {}

    def of(self, scopes: Iterable[Scope]) -> int:
        """Give the components that a call with these scopes around it is in (bit i for number i): see `matches`."""
        found = 0
        for scope in scopes:
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


def known_components(record: Record) -> list[str]:
    """List the names of modules and component blocks."""
    seen = {s.name for call in record.calls for s in call.scopes}
    return sorted(seen | set(record.modules))


def top_level(record: Record) -> list[str]:
    """List the outermost modules and blocks in which calls were made."""
    return list(dict.fromkeys(call.scopes[0].name for call in record.calls if call.scopes))


def select_leaves(record: Record, of: str | Sequence[str]) -> list[Value]:
    """Give the leaves whose names match a glob (or one of several).

    Raises:
        UnknownName: nothing matches; the message lists the names.
    """
    patterns = [of] if isinstance(of, str) else list(of)
    names = {**{n: n for n in record.leaves}, **record.aliases}
    found = {record.leaves[real].id: record.leaves[real] for n, real in names.items() if _any(n, patterns)}
    if not found:
        raise UnknownName(f"no parameter matches {of!r}; there are {_list(names)}")
    return list(found.values())


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) or name == p for p in patterns)


def _list(names: Iterable[str], most: int = 30) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f", … ({len(names) - most} more)" if len(names) > most else "")


def check(record: Record, components: Sequence[Component]) -> None:
    """Make sure that every component exists.

    Raises:
        UnknownName: one does not; the message lists those that do.
    """
    known, members = {*record.modules, *record.leaves}, Membership(components)
    seen = members.of({scope for call in record.calls for scope in call.scopes})
    for number, component in enumerate(components):
        name = name_of(component)
        if name not in known and not seen >> number & 1:
            raise UnknownName(f"unknown component {name!r}; there are {_list(known_components(record)) or 'none'}")
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
