"""Names for junctions and their branches, of what ran between the fork and the junction.

A junction is at home in the innermost module that holds it and all of its branches. A branch is named by the modules
one level further in that it runs through, those with weights if there are any, or else by its operators; "around" is a
branch in which nothing is computed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..recording.record import Call, Record, Scope, Value
from .junctions import CONTRACTIONS, SHUFFLES, Entry, Junction

MOST_CALLS = 250  # read of a branch, from its end
MOST_NAMED = 3
AROUND = "around"
STARTS = " starts here"  # what a parameter's branch is called that paths do not come by: they begin with it
LISTS = frozenset(("cat", "stack"))
SOFTMAX = frozenset(("_softmax", "_safe_softmax", "softmax"))
SQUASHING = SOFTMAX | {"sigmoid", "hardsigmoid", "clamp"}
GATED = frozenset(("mul", "addcmul", "lerp"))  # at which a branch that ends in numbers between 0 and 1 is a gate
BATCHED = frozenset(("bmm", "baddbmm"))
# what scores of attention go through on their way to a softmax, and weights from there on
SCALING = SHUFFLES | {"mul", "div", "add", "sub", "masked_fill", "where", "native_dropout", "dropout"}
QUERIES, KEYS, WEIGHTS, VALUES = "queries", "keys", "weights (q, k)", "values"
INPUT, STATE = "input", "state"
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
        near: the module call that is next to it inside the home, "after" which it comes or in which it is; else "".
        branches: a name for each.
        fork: the module or leaf that the branches come from.
        modules: whether any branch runs through a module, not through operators alone.
    """

    home: str
    branches: tuple[str, ...]
    fork: str
    modules: bool
    near: str = ""


class Names:
    """Reads names off a tape."""

    def __init__(self, record: Record) -> None:
        self._record = record
        weights = [str(v.name) for v in record.leaves.values() if len(v.shape) > 1]
        homes = {name.rpartition(".")[0] for name in weights}
        # a module has weights if one inside it has
        self._weighty = {h for home in homes for h in _and_above(home)}

    def of(self, junction: Junction) -> Named:
        """Name a junction."""
        fork = _name_of(junction.fork)
        if junction.heads:
            home = _common([junction.call.scopes])
            heads = tuple(f"head {n}" for n in range(junction.heads))
            return Named(_shown(home, [junction.call]), heads, fork, True)
        stretches = [_stretch(junction, entry) for entry in junction.entries]
        roles = _of_lstm(junction, [calls for calls, _ in stretches])
        if roles:
            return Named(_shown(junction.call.scopes, [junction.call]), tuple(_told_apart(roles, junction)), fork, True)
        computing = [c for calls, _ in stretches for c in calls]
        home = _common([junction.call.scopes, *(c.scopes for c in computing)])
        shown = _shown(home, [junction.call, *computing])
        inside = [any(len(c.scopes) > len(home) for c in calls) for calls, _ in stretches]
        names = self._of_attention(junction) or self._of_step(junction) or self._branches(stretches, home, shown)
        names = _told_apart(_of_roles(junction, names, stretches, inside), junction)
        modules = any(inside) or junction.call.base in LISTS
        return Named(shown, tuple(names), fork, modules, _near(junction, len(home)))

    def _branches(self, stretches: Sequence[tuple[list[Call], bool]], home: Sequence[Scope], above: str) -> list[str]:
        """Name branches by their modules, but for those that all of them run through, or by their operators."""
        inside = [self._modules(calls, home) for calls, _ in stretches]
        common = set.intersection(*map(set, inside))
        own = [[m for m in modules if m not in common] for modules in inside]
        inside = own if all(own) else inside
        out = []
        for modules, (calls, whole) in zip(inside, stretches, strict=True):
            names = [_relative(m, above) for m in modules] or [c.title for c in calls]
            beside = _side_by_side(modules, calls, len(home)) if modules else set()
            out.append(_listed(list(dict.fromkeys(names)), whole, beside) if names else AROUND)
        return out

    def _of_attention(self, junction: Junction) -> list[str]:
        """Name what comes into the two products of attention; nothing for what is none."""
        if junction.call.base not in BATCHED or len(junction.entries) != 2:
            return []
        for one, other in (0, 1), (1, 0):
            found = _before(junction.entries[one].value)
            if found is not None and found.base in SQUASHING:
                scores = _before(next(i.value for i in found.inputs if i.value is not None))
                names = [VALUES, VALUES]
                names[one] = WEIGHTS if scores is not None and scores.base in BATCHED else "weights"
                return names if _before(junction.entries[other].value) is not found else []
        if not self._leads_to_softmax(junction.call):
            return []
        first, second = (min(position for _, position in e.arguments) for e in junction.entries)
        return [QUERIES, KEYS] if first < second else [KEYS, QUERIES]

    def _of_step(self, junction: Junction) -> list[str]:
        """Name what comes into a step of a recurrence: its input, and the state from the step before."""
        leaves, scopes = [_leaf_of(e) for e in junction.entries], junction.call.scopes
        if not scopes or scopes[-1] not in self._steps:
            return _of_fused_step(junction, leaves)
        roles = [leaf or _role(e.value, scopes[-1]) for leaf, e in zip(leaves, junction.entries, strict=True)]
        return roles if roles.count(STATE) == 1 and all(roles) else []

    @cached_property
    def _steps(self) -> set[Scope]:
        """Find the module calls that take something from an earlier call of their module, and something else, too."""
        taken: dict[Scope, set[str]] = {}
        for call in self._record.calls:
            for value in (i.value for i in call.inputs if call.scopes and i.value is not None):
                maker = _moved(value).call
                if maker is not None and call.scopes[-1] not in maker.scopes:
                    taken.setdefault(call.scopes[-1], set()).add(_made_by(maker, call.scopes[-1]))
        return {scope for scope, roles in taken.items() if len(roles) > 1}

    def _leads_to_softmax(self, call: Call) -> bool:
        """Tell whether what a product gives is scores."""
        seen, waiting = set[int](), [call]
        while waiting:
            made = waiting.pop()
            for value in made.outputs:
                for reader in self._readers.get(value.id, ()) if value is not None else ():
                    if reader.base in SOFTMAX:
                        return True
                    if reader.base in SCALING and reader.index not in seen:
                        seen.add(reader.index)
                        waiting.append(reader)
        return False

    @cached_property
    def _readers(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self._record.calls:
            for given in call.inputs:
                if given.value is not None:
                    found.setdefault(given.value.id, []).append(call)
        return found

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


def _listed(names: Sequence[str], whole: bool, beside: Container[int] = ()) -> str:
    """Write what a branch runs through, one after the other.

    Args:
        whole: whether nothing of it was left out.
        beside: the numbers of those that take nothing from the one before.
    """
    if len(names) > MOST_NAMED or (not whole and len(names) > 1):
        return " → ".join([names[0] if whole else "…", "…" if whole else names[-2], names[-1]])
    return names[0] + "".join(f" {'&' if n in beside else '→'} {name}" for n, name in enumerate(names[1:], 1))


def _side_by_side(modules: Sequence[Scope], calls: Sequence[Call], depth: int) -> set[int]:
    """Number the modules of a branch that take nothing from the one before them."""
    of: dict[Scope, list[Call]] = {}
    for call in calls:
        if len(call.scopes) > depth:
            of.setdefault(call.scopes[depth], []).append(call)
    few = enumerate(pairwise(modules), 1) if len(modules) <= MOST_NAMED else ()
    return {n for n, (before, after) in few if not _takes(of[after], of[before])}


def _takes(calls: Sequence[Call], of: Sequence[Call]) -> bool:
    """Tell whether what some calls take was computed of what others gave."""
    wanted, seen, waiting = {c.index for c in of}, set[int](), list(calls)
    first = min(wanted)
    while waiting:
        for value in (i.value for i in waiting.pop().inputs):
            maker = value.call if value is not None else None
            if maker is not None and maker.index >= first and maker.index not in seen:
                if maker.index in wanted:
                    return True
                seen.add(maker.index)
                waiting.append(maker)
    return False


def _before(value: Value) -> Call | None:
    """Give the call that a value is read off, without what only moves, scales or masks it."""
    while value.call is not None and value.call.base in SCALING:
        given = {i.value.id: i.value for i in value.call.inputs if i.value is not None and i.value.differentiable}
        if len(given) != 1:
            break
        (value,) = given.values()
    return value.call


def _near(junction: Junction, depth: int) -> str:
    """Name the module call in which a junction is, inside its home, or after which it comes."""
    call = junction.call
    if len(call.scopes) > depth:
        return str(call.scopes[-1])
    makers = [e.value.call for e in junction.entries if e.value.call is not None]
    inside = [m for m in makers if len(m.scopes) > depth]
    return f"after {max(inside, key=lambda m: m.index).scopes[depth]}" if inside else ""


def _moved(value: Value) -> Value:
    """Give what a value is, before it was only moved."""
    while value.call is not None and not _computes(value.call):
        value = next(i.value for i in value.call.inputs if i.value is not None)
    return value


def _leaf_of(entry: Entry) -> str | None:
    """Give the last name of the leaf that comes in as it is."""
    name = _moved(entry.value).name
    return None if name is None else name.rpartition(".")[2]


def _of_roles(
    junction: Junction, names: Sequence[str], stretches: Sequence[tuple[list[Call], bool]], inside: Sequence[bool]
) -> list[str]:
    """Name branches by what they are for at their junction: a weight that paths start with, a gate."""
    base, out = junction.call.base, list(names)
    if base in CONTRACTIONS:
        given = map(_leaf_of, junction.entries)
        out = [f"{leaf}{STARTS}" if leaf else name for leaf, name in zip(given, out, strict=True)]
    gates = [_gates(calls) for calls, _ in stretches]
    if base in GATED and not all(gates):
        of = [f"gate: {n}" if through and n != "gate" else "gate" for n, through in zip(out, inside, strict=True)]
        out = [role if gate else name for role, gate, name in zip(of, gates, out, strict=True)]
    return out


def _of_fused_step(junction: Junction, leaves: Sequence[str | None]) -> list[str]:
    """Name them where all steps are one call of a module, which adds parts of the inputs' product to the state's."""
    places = [min(position for _, position in e.arguments) for e in junction.entries]
    if junction.call.base != "addmm" or sorted(places) != [0, 1, 2]:
        return []
    weight = junction.entries[places.index(2)].value.call  # that is seen transposed, once for all steps
    used_before = weight is not None and bool(junction.calls >> weight.index & 1)
    if not used_before or [places[n] for n, leaf in enumerate(leaves) if leaf] != [2]:
        return []
    return [leaf or (INPUT if place == 0 else STATE) for leaf, place in zip(leaves, places, strict=True)]


def _role(value: Value, step: Scope) -> str:
    """Tell whether what a value is computed of, in a step, is state or input; neither where it is both, or too much."""
    found, seen, waiting = set[str](), set[int](), [value]
    while waiting and len(seen) < MOST_CALLS:
        call = _moved(waiting.pop()).call
        if call is None or call.index in seen:
            continue
        seen.add(call.index)
        if step in call.scopes:
            waiting += [i.value for i in call.inputs if i.value is not None and i.value.differentiable]
        else:
            found.add(_made_by(call, step))
    return found.pop() if len(found) == 1 and not waiting else ""


def _made_by(call: Call, step: Scope) -> str:
    """Tell what is made before a step, by an earlier one or elsewhere."""
    return STATE if any(s.name == step.name for s in call.scopes) else INPUT


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
    base = value.call.title
    return f"{base} in {value.call.module}" if value.call.scopes else base
