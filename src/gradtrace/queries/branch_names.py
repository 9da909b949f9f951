"""Names for junctions and their branches, of what ran between the fork and the junction.

A junction is at home in the innermost module that holds it and all of its branches. A branch is named by the modules
one level further in that it runs through, those with weights if there are any, or else by its operators; "around" is a
branch in which nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..recording.record import Call, Record, Scope, Value
from .junctions import CONTRACTIONS, SHUFFLES, Entry, Junction

MOST_CALLS = 250  # read of a branch, from its end
MOST_NAMED = 3
AROUND = "around"
LISTS = ("cat", "stack")
SQUASHING = frozenset(("sigmoid", "hardsigmoid", "_softmax", "_safe_softmax", "softmax", "clamp"))
# what a branch that ends in numbers between 0 and 1 is called at a product
GATES = {"mul": "gate", "addcmul": "gate", "lerp": "gate", "bmm": "attention"}
# the two products of an LSTM's step, c = f·c + i·g and h = o·tanh(c): what comes in, by the operators that it ends in
LSTM = {
    ("addcmul", "mul"): "cell",
    ("addcmul", "sigmoid"): "gate",
    ("addcmul", "tanh"): "candidate",
    ("mul", "addcmul", "tanh"): "cell",
    ("mul", "sigmoid"): "gate",
}


@dataclass(frozen=True)
class Named:
    """What a junction is called.

    Attributes:
        home: the module, "" at the top.
        branches: a name for each.
        fork: the module or leaf that the branches come from.
        modules: whether any branch runs through a module, not through operators alone.
    """

    home: str
    branches: tuple[str, ...]
    fork: str
    modules: bool


class Names:
    """Reads names off a tape."""

    def __init__(self, record: Record) -> None:
        weights = [str(v.name) for v in record.leaves.values() if len(v.shape) > 1]
        homes = {name.rpartition(".")[0] for name in weights}
        # a module has weights if one inside it has
        self._weighty = {h for home in homes for h in _and_above(home)}

    def of(self, junction: Junction) -> Named:
        """Name a junction."""
        fork = _name_of(junction.fork)
        if junction.heads:
            home = _common([junction.call.scopes])
            return Named(_shown(home, [junction.call]), tuple(f"head {n}" for n in range(junction.heads)), fork, True)
        stretches = [_stretch(junction, entry) for entry in junction.entries]
        roles = _of_lstm(junction, [calls for calls, _ in stretches])
        if roles:
            return Named(_shown(junction.call.scopes, [junction.call]), tuple(_told_apart(roles, junction)), fork, True)
        computing = [c for calls, _ in stretches for c in calls]
        home = _common([junction.call.scopes, *(c.scopes for c in computing)])
        shown = _shown(home, [junction.call, *computing])
        inside = [any(len(c.scopes) > len(home) for c in calls) for calls, _ in stretches]
        names = _of_roles(junction, self._branches(stretches, home, shown), stretches, inside)
        return Named(shown, tuple(_told_apart(names, junction)), fork, any(inside) or junction.call.base in LISTS)

    def _branches(self, stretches: Sequence[tuple[list[Call], bool]], home: Sequence[Scope], above: str) -> list[str]:
        """Name branches by their modules, but for those that all of them run through, or by their operators."""
        inside = [self._modules(calls, home) for calls, _ in stretches]
        common = set.intersection(*map(set, inside))
        own = [[m for m in modules if m not in common] for modules in inside]
        inside = own if all(own) else inside
        out = []
        for modules, (calls, whole) in zip(inside, stretches, strict=True):
            names = [_relative(m, above) for m in modules] or [c.base.strip("_") for c in calls]
            out.append(_listed(list(dict.fromkeys(names)), whole) if names else AROUND)
        return out

    def _modules(self, calls: Sequence[Call], home: Sequence[Scope]) -> list[Scope]:
        """Give the modules one level further in, those with weights if there are any."""
        inside = [c.scopes[len(home)] for c in calls if len(c.scopes) > len(home)]
        modules = list(dict.fromkeys(inside))
        return [m for m in modules if m.name in self._weighty] or modules


def _stretch(junction: Junction, entry: Entry) -> tuple[list[Call], bool]:
    """Give the calls of a branch that compute something, in order; whether all are given."""
    calls, whole = junction.between(entry, MOST_CALLS)
    return [c for c in calls if _computes(c)], whole


def _computes(call: Call) -> bool:
    return call.base not in SHUFFLES


def _gates(calls: Sequence[Call]) -> bool:
    """Tell whether a branch ends in numbers between 0 and 1."""
    return bool(calls) and calls[-1].base in SQUASHING


def _and_above(home: str) -> list[str]:
    parts = home.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _common(stacks: Iterable[Sequence[Scope]]) -> list[Scope]:
    """Give what stacks of scopes begin with."""
    first, *others = stacks
    out: list[Scope] = []
    for n, scope in enumerate(first):
        if any(len(o) <= n or o[n] != scope for o in others):
            break
        out.append(scope)
    return out


def _shown(home: Sequence[Scope], calls: Sequence[Call]) -> str:
    """Name a home, by what the names of modules in it begin with where they have one that is never called itself."""
    if any(len(c.scopes) <= len(home) for c in calls):
        return str(home[-1]) if home else ""
    parts = [c.scopes[len(home)].name.split(".")[:-1] for c in calls]
    same = 0
    while all(len(p) > same and p[same] == parts[0][same] for p in parts):
        same += 1
    longer = ".".join(parts[0][:same])
    return longer if not home or longer.startswith(f"{home[-1].name}.") else str(home[-1])


def _relative(scope: Scope, above: str) -> str:
    return str(scope).removeprefix(f"{above.partition(':')[0]}.") if above else str(scope)


def _listed(names: Sequence[str], whole: bool) -> str:
    shown = list(names) if len(names) <= MOST_NAMED else [names[0], "…", names[-1]]
    return " → ".join(shown if whole or len(shown) == 1 else ["…", *shown[-2:]])


def _leaf_of(entry: Entry) -> str | None:
    """Give the last name of the leaf that comes in as it is."""
    value = entry.value
    while value.call is not None and not _computes(value.call):
        value = next(i.value for i in value.call.inputs if i.value is not None)
    return None if value.name is None else value.name.rpartition(".")[2]


def _of_roles(
    junction: Junction, names: Sequence[str], stretches: Sequence[tuple[list[Call], bool]], inside: Sequence[bool]
) -> list[str]:
    """Name branches by what they are for at their junction: a weight that is used here, a gate, an LSTM's cell."""
    base, out = junction.call.base, list(names)
    if base in CONTRACTIONS:
        given = map(_leaf_of, junction.entries)
        out = [f"{leaf} here" if leaf else name for leaf, name in zip(given, out, strict=True)]
    gates = [_gates(calls) for calls, _ in stretches]
    said = GATES.get(base)
    if said and not all(gates):
        of = [f"{said}: {n}" if through and said == "gate" else said for n, through in zip(out, inside, strict=True)]
        out = [role if gate else name for role, gate, name in zip(of, gates, out, strict=True)]
    return out


def _of_lstm(junction: Junction, stretches: Sequence[Sequence[Call]]) -> list[str]:
    """Name what comes into an LSTM's step; nothing for what is none."""
    base, names = junction.call.base, []
    for calls in stretches:
        ends = [c.base for c in calls]
        names.append(LSTM.get((base, *ends[-1:])) or LSTM.get((base, *ends[-2:])))
    return [str(name) for name in names] if "cell" in names and all(names) else []


def _told_apart(names: Sequence[str], junction: Junction) -> Sequence[str]:
    """Name branches by their places where several have one name."""
    if len(set(names)) == len(names):
        return names
    sides = ["left", "right"] if junction.call.base == "bmm" else [f"part {n}" for n in range(len(names))]
    if len(set(names)) == 1 or junction.call.base in LISTS:
        return sides
    return [name if names.count(name) == 1 else f"{name} ({side})" for name, side in zip(names, sides, strict=True)]


def _name_of(value: Value) -> str:
    """Name a value by its leaf, or by the module and operator that made it."""
    if value.call is None:
        return str(value.name)
    base = value.call.base.strip("_")
    return f"{base} in {value.call.module}" if value.call.scopes else base
