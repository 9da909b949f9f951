"""Findings of what gets lost: parameters that get no gradient, and why; calls at which nearly all of it vanishes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from ..errors import GradtraceError
from ..recording.record import Call, Record, Value
from .departures import live_in_examples
from .findings import Cell, Finding
from .forest import Forest
from .group_names import group_named, listed
from .join_rows import pattern_of
from .junctions import SHUFFLES
from .paths import Reader, Start
from .strongest import of_all_strengths
from .why import Reasons, unanswered, why
from .zeros import at, briefly, of_zero, placed

MOST_NAMED = 4
MOST_CAUSES = 3  # of which each has a sentence of its own
MOST_LOOKED_AT = 12  # calls at which parameters die, whose numbers are looked at
NEARLY_DEAD = 0.9  # of a parameter's scalars
# they read the rows that there are words for
READERS = frozenset(("embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"))
SAMPLED = 32  # paths of a group whose steps are read
FAINT = -10.0  # log2 of the factor of one call, and of the paths to where parameters end, from which they vanish
SHARED = 0.5  # of the paths, that come through the call
# what is said of parameters from which the loss is not computed, before the place
PLACED = {
    "unused": "not used in the recorded forward pass",
    "cut": "autograd stops at",
    "result unused": "the loss is not computed from the result of",
}
# whose results add up to as much as what was given: a small derivative is the share of one in many
AVERAGES = frozenset(("mean", "bmm", "baddbmm", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_softmax"))
AVERAGES |= frozenset(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d"))


# ---------------------------------------------------------------- what is dead


def of_dead(forest: Forest, dead: Mapping[str, float]) -> list[Finding]:
    """Say which parameters are wholly dead and why, those of one cause together, and which are nearly so.

    Args:
        dead: by parameter, the share of its scalars without a path.
    """
    wholly = [name for name, share in dead.items() if share == 1]
    out = []
    for cause, names in (_by_cause(forest, wholly) if wholly else {}).items():
        shown = gathered(names, list(dead))
        get = "gets" if len(shown) == 1 and "*" not in shown[0] else "get"
        why_so = f": {cause}" if cause else ""
        count = f"{len(names)} of the {len(dead)} parameters"
        text = f"{listed(shown, 'and', MOST_NAMED)} {get} no gradient ({count}){why_so}."
        cells = tuple(Cell("dead", name, "", dead[name]) for name in names)
        out.append(Finding("dead", text, cells, len(names) / len(dead), len(dead), 1.0))
    return out + _nearly(forest.record, dead)


def of_examples(forest: Forest, dead: Mapping[str, float]) -> list[Finding]:
    """Say from how many parameters no path leads to the loss in some examples, though it does in others.

    Of a forest that tells examples apart, and where that is so of half of the parameters or more: that an expert or a
    branch serves some examples alone is usual.
    """
    if forest.labels is None:
        return []
    living, without = [name for name, share in dead.items() if share < 1], dict[tuple[int, ...], list[str]]()
    for name in living:
        live = live_in_examples(forest, forest.record.leaves[name])
        if not all(live):
            without.setdefault(tuple(n for n, lives in enumerate(live) if not lives), []).append(name)
    if not without:
        return []
    examples, names = max(without.items(), key=lambda pair: len(pair[1]))
    if 2 * len(names) < len(living):
        return []
    count = forest.labels.count
    which = f"{len(examples)} of the {count} examples ({listed([str(n) for n in examples], 'and', 8)})"
    text = f"In {which} no path leads from {listed(gathered(names, list(dead)), 'and', MOST_NAMED)} to the loss."
    return [Finding("examples", text, (), len(examples) / count, count, 0.96)]


def _size(record: Record, names: Sequence[str]) -> int:
    return sum(record.leaves[name].numel for name in names)


def _nearly(record: Record, dead: Mapping[str, float]) -> list[Finding]:
    """Say so of parameters of which some scalars live; rows of words that do not occur are none of them."""
    rows = {i.value.id for call in record.calls if call.base in READERS for i in call.inputs if i.value is not None}
    partly = [n for n, share in dead.items() if NEARLY_DEAD <= share < 1 and record.leaves[n].id not in rows]
    if not partly:
        return []
    partly.sort(key=lambda name: -dead[name])
    shares = listed([f"{name} ({100 * dead[name]:.1f}%)" for name in partly], "and", MOST_NAMED)
    cells = tuple(Cell("dead", name, "", dead[name]) for name in partly)
    return [Finding("dead", f"Nearly all scalars get no gradient in {shares}.", cells, dead[partly[0]], 0.0, 0.6)]


def gathered(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """Name parameters by the modules of which they are all, and many of them by patterns.

    >>> every = ["conv.weight", "conv.bias", "fc.weight", "fc.bias", *(f"h.{n}.w" for n in range(9)), "out.w"]
    >>> gathered(["conv.weight", "conv.bias", "fc.weight"], every), gathered(every[4:-1], every)
    (['conv', 'fc.weight'], ['h'])
    >>> gathered([f"h.{n}.a" for n in range(9)], [f"h.{n}.{w}" for n in range(9) for w in "ab"])
    ['h.*.a']
    """
    own, found = set(names), dict[str, None]()
    for name in names:
        parts = name.split(".")
        homes = [".".join(parts[:n]) for n in range(1, len(parts))]
        found[next((h for h in homes if own.issuperset(n for n in every if n.startswith(f"{h}."))), name)] = None
    return list(found) if len(found) <= MOST_NAMED else list(dict.fromkeys(_starred(n, own, every) for n in found))


def _starred(name: str, own: set[str], every: Sequence[str]) -> str:
    """Put stars for a name's numbers, if that means none but some parameters."""
    pattern = pattern_of(name)
    like = re.compile(re.escape(pattern).replace(r"\*", r"\d+") + r"(\..+)?")
    return pattern if own.issuperset(n for n in every if like.fullmatch(n)) else name


def _by_cause(forest: Forest, names: Sequence[str]) -> dict[str, list[str]]:
    """Put dead parameters together of which the same is said; "" is the cause of those of which nothing can be."""
    if forest.derivatives is not None:  # it was saved, without the numbers of the forward pass
        return {"": [*names]}
    causes = _Causes(Reasons(forest.record, forest.loss, forest), names)
    alike: dict[str, list[str]] = {}
    texts: dict[str, set[str]] = {}
    for name in names:
        cause, text = causes.of(name)
        alike.setdefault(cause, []).append(name)
        texts.setdefault(cause, set()).add(text)
    ranked = sorted(alike, key=lambda cause: (not cause, -_size(forest.record, alike[cause])))
    most = MOST_CAUSES if len(ranked) <= MOST_CAUSES else MOST_CAUSES - 1
    out = {texts[c].pop() if len(texts[c]) == 1 else c: alike[c] for c in ranked[:most]}
    rest = [name for c in ranked[most:] for name in alike[c]]
    return out | ({"": rest} if rest else {})


Said: TypeAlias = tuple[str, str]  # without the module, so that layers have one cause, and with it


@dataclass(eq=False)
class _Causes:
    """Why parameters are dead, found where they die: each such call is looked at once, however many die there.

    Args:
        names: of dead parameters.
    """

    reasons: Reasons
    names: Sequence[str]
    _said: dict[tuple[int, int], Said] = field(default_factory=dict)
    _asked: dict[int, Said] = field(default_factory=dict)  # what `why` says, by the last call of those with one end

    def __post_init__(self) -> None:
        self._ends = self._where_they_end()

    def of(self, name: str) -> Said:
        """Give the cause of one, in general and in full, without a full stop; "" where it cannot be told."""
        value = self.reasons.record.leaves[name]
        ends = self._ends.get(value.id, frozenset())
        try:
            if ends and self.reasons.reached(value):
                said = [self._of_end(end) for end in sorted(ends)]
                cause, text = (
                    listed(list(dict.fromkeys(filter(None, each))), "and", 1) for each in zip(*said, strict=True)
                )
                return cause, text
            return self._of_unreached(name, max(ends, default=(-value.id, 0))[0])
        except GradtraceError:  # a number that is needed is gone
            return "", ""

    def _where_they_end(self) -> dict[int, frozenset[tuple[int, int]]]:
        """Give by value the (call, value) at which what is dead meets what is not, or where its way is over."""
        reasons, out = self.reasons, dict[int, frozenset[tuple[int, int]]]()
        dead = reasons.record.after([reasons.record.leaves[name] for name in self.names])
        for call in reversed(reasons.record.calls):
            for value in {
                i.value.id: i.value for i in call.inputs if i.value is not None and i.value.id in dead
            }.values():
                made = [v for v in call.outputs if v is not None]
                on = frozenset[tuple[int, int]]().union(*(out.get(v.id, ()) for v in made))
                leads = call.index in reasons.leading
                if any(reasons.live(v) for v in made) if leads else not on:
                    on = frozenset([(call.index, value.id)])
                out[value.id] = out.get(value.id, frozenset()) | on
        return out

    def _of_end(self, end: tuple[int, int]) -> Said:
        """Say why nothing comes back through a call to one of its arguments."""
        if end not in self._said:
            if len(self._said) >= MOST_LOOKED_AT:
                return "", ""
            call = next(c for c in self.reasons.consumers[end[1]] if c.index == end[0])
            here = next(i.value for i in call.inputs if i.value is not None and i.value.id == end[1])
            if unanswered(here, call):
                said = f"the backward of {call.name} gives None for it ({at(call)})"
                self._said[end] = said, said
            else:
                zero = of_zero(here, call)
                self._said[end] = zero.told(placing=False), zero.told()
        return self._said[end]

    def _of_unreached(self, name: str, end: int) -> Said:
        """Say why the loss is not computed from a parameter, once for all that end at one call."""
        if end not in self._asked:
            found = why(self.reasons, name)
            place = briefly(found.where[0]).partition(": ")[0] if found.where else ""  # without the line's code
            said = f"{PLACED.get(found.cause, found.said)} {place}".rstrip()
            self._asked[end] = said, said
        return self._asked[end]


# ---------------------------------------------------------------- what vanishes


def of_vanished(forest: Forest, leaves: Sequence[Value]) -> list[Finding]:
    """Say which call takes most of the weight of paths from a group of parameters, if one takes nearly all.

    Calls after the last parameter are left out, whose factor all paths share, and averages; and the rest has to be
    small, too: a norm that follows makes up for what small weights take.
    """
    try:
        weights = factors(forest, leaves)
    except GradtraceError:  # a number that is needed is gone
        return []
    if not weights or median(sum(of.values()) for of in weights) > FAINT:
        return []
    calls = {c.index: c for c in forest.record.calls}
    typical = {
        index: median(of[index] for of in weights if index in of)
        for index in {index for of in weights for index in of}
        if sum(index in of for of in weights) >= SHARED * len(weights) and calls[index].base not in AVERAGES
    }
    worst = min(typical, key=lambda index: typical[index], default=None)
    if worst is None or not -math.inf < typical[worst] <= FAINT:  # nor of derivatives that are no numbers
        return []
    group = group_named([str(v.name) for v in leaves], len(forest.record.leaves), shorten=True)
    log2 = typical[worst]
    fold = f"about {float(f'{2**-log2:.2g}'):,.0f}-fold, by " if log2 > -30 else "by "
    text = f"{_shrinking(calls[worst])} shrinks the paths from {group} {fold}2^{log2:.0f} ({at(calls[worst])})."
    return [Finding("vanished", text, (), log2, len(weights), 0.95)]


def factors(forest: Forest, leaves: Sequence[Value]) -> list[dict[int, float]]:
    """Give for paths of all strengths from a group log2 of the local derivative at each call, by its number.

    Calls after the last that takes a parameter are left out.
    """
    each = max(1, math.ceil(SAMPLED / max(1, len(leaves))))
    starts = [(leaf, flat) for leaf in leaves[:SAMPLED] for flat in of_all_strengths(forest, leaf, each)]
    steps = Reader(forest).read([Start(leaf, flat, forest.row(leaf, flat)) for leaf, flat in starts])
    paths, last = map(steps.along, range(len(starts))), _last_use(forest.record, forest.loss)
    return [{c.index: math.log2(abs(w)) for c, *_, w in moves if c.index <= last and w} for moves in paths]


def _last_use(record: Record, loss: Value) -> int:
    """Give the number of the last call that takes a parameter, seen otherwise or not."""
    own, last = {v.id for v in record.leaves.values()}, -1
    for call in record.before(loss):
        if any(i.value is not None and i.value.id in own for i in call.inputs):
            if call.base in SHUFFLES:
                own.update(v.id for v in call.outputs if v is not None)
            last = call.index
    return last


def _shrinking(call: Call) -> str:
    """Name a call that shrinks: a product by its small factor."""
    factors = [i.value.call.title for i in call.inputs if i.value is not None and i.value.call is not None]
    small = [name for name in factors if name in ("sigmoid", "hardsigmoid", "softmax", "tanh", "exp")]
    if call.base == "mul" and small:
        return f"The product with {small[0]}" + placed(call).removeprefix(call.base)
    return placed(call)
