"""One row a module: how much gradient its parameters get, and what it does to what goes back through it.

A module is all calls made inside it, however often it is called, and the parameters whose names begin with its own. Its
*units* are the scalars of what leaves it: of results that calls outside of it use, or where there are none, that nobody
uses. A scalar is *dead* if no path of non-zero weight leads from it to the loss, over the whole batch.
What is gained says how strong paths are, not how large gradients: those cancel.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backward.elements import Elements
from ..backward.several import gradings, quick
from ..backward.walk import walk
from ..backward.watched import EdgeKey, Key, watch_strongest
from ..kernels.shared_exponent import OutOfRange, Plane, Spikes
from ..recording.record import Call, Record, Value
from ..semirings import Entropy
from ..semirings.base import Carrier, Max, Semiring, Sum
from .plots import draw_dots

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

NARROW = 26  # powers of 2 that gradients keep from the end of their precision, or they have an exponent each
WIDTH = 22  # of the column of names


@dataclass(frozen=True)
class LayerRow:
    """One module.

    Attributes:
        module: its qualified name, or that of a `component` block; "" is the whole model, as far as its parameters go.
        calls: operator calls made inside.
        parameters: scalars of its parameters, those of modules inside it too; `dead_parameters`: the share without a
            path to the loss.
        log2_gradient: log2 of the Euclidean norm of ∂ℓ/∂θ over them; -inf where it is 0.
        log2_strongest: log2 weight of the strongest path from any of them; -inf where there is none.
        entropy: of the paths from those that are live, in bits, on average.
        units: scalars that leave it; `dead_units`: the share without a path.
        log2_unit_gradient, log2_unit_strongest: of the units, as those of the parameters.
        log2_gained: the strongest path that goes in, over the strongest that comes out; nan where no path goes in.
    """

    module: str
    calls: int
    parameters: int
    dead_parameters: float
    log2_gradient: float
    log2_strongest: float
    entropy: float
    units: int
    dead_units: float
    log2_unit_gradient: float
    log2_unit_strongest: float
    log2_gained: float


HEADINGS = (
    ("dead_parameters", "dead", 7),
    ("log2_gradient", "gradient", 10),
    ("log2_strongest", "strongest", 11),
    ("entropy", "entropy", 8),
    ("dead_units", "dead", 7),
    ("log2_unit_strongest", "strongest", 11),
    ("log2_gained", "gained", 7),
)  # column, its heading, its width: 58 with those of the names make 80


@dataclass(frozen=True)
class LayerTable:
    """One row a module, in the model's own order."""

    rows: tuple[LayerRow, ...]

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a module, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.rows], columns=[f.name for f in fields(LayerRow)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw gradients and strongest paths of modules' parameters, on these axes or new ones (matplotlib)."""
        own = [row for row in self.rows if row.module and row.parameters]
        found = {"gradient": [r.log2_gradient for r in own], "strongest path": [r.log2_strongest for r in own]}
        return draw_dots([row.module for row in own], found, "log2", ax)

    def __str__(self) -> str:
        sides = f"{'':<{WIDTH - 3}}{' parameters ':-^36}  {' units ':-^23}"
        lines = ["log2 of gradients and weights; dead over the whole batch; entropy in bits", sides]
        lines.append(f"{'module':<{WIDTH - 3}}" + "".join(f"{said:>{width}}" for _, said, width in HEADINGS))
        for row in self.rows:
            cells = "".join(f"{_said(name, getattr(row, name)):>{width}}" for name, _, width in HEADINGS)
            lines.append(f"{_short(row.module or '(all)', WIDTH - 4):<{WIDTH - 3}}{cells}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "<th></th><th colspan=4>parameters</th><th colspan=3>units</th></tr><tr><th>module</th>"
        head += "".join(f"<th>{said}</th>" for _, said, _ in HEADINGS)
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(row.module or '(all)')}</th>"
            + "".join(f"<td>{_said(name, getattr(row, name))}</td>" for name, _, _ in HEADINGS)
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _said(column: str, number: float) -> str:
    if math.isnan(number):
        return "–"
    if column.startswith("dead"):
        return f"{number:.1%}"
    if column == "log2_gained":
        return f"{number:+.1f}"
    return "none" if number == -math.inf else f"{number:.1f}"


def _short(name: str, width: int) -> str:
    """Write the end of a name, which tells more than its beginning."""
    return name if len(name) <= width else "…" + name[1 - width :]


@dataclass(eq=False)
class _Module:
    """What belongs to one module.

    Attributes:
        leaves: its parameters; units: values that leave it.
        whole: values that go in, and nowhere else; parts: edges by which others go in.
    """

    name: str
    calls: int = 0
    leaves: dict[int, Value] = field(default_factory=dict)
    units: dict[int, Value] = field(default_factory=dict)
    unused: dict[int, Value] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    parts: set[EdgeKey] = field(default_factory=set)


@dataclass(eq=False)
class _Seen:
    """What walks brought: log2 of the strongest weight, how many scalars are live, log2 of norms, sums of entropies."""

    top: dict[Key, float] = field(default_factory=dict)
    live: dict[Key, int] = field(default_factory=dict)
    norm: dict[Key, float] = field(default_factory=dict)
    entropy: dict[Key, float] = field(default_factory=dict)
    range: list[float] = field(default_factory=list)  # log2 of bounds of the largest weight of each value


def layers(record: Record, loss: Value, *, entropy: bool = True) -> LayerTable:
    """Tabulate the modules of a tape: three walks, under Max, Sum and Entropy."""
    found = _modules(record)
    leaves = {i for m in found for i in m.leaves}
    values = leaves | {i for m in found for i in (*m.units, *m.whole)}
    seen = _Seen()
    _walk_strongest(record, loss, seen, values, {e for m in found for e in m.parts})
    _walk_norms(record, loss, seen, values)
    if entropy:
        _walk_under(Entropy, record, loss, leaves, lambda key, carrier, g: _note_entropy(seen, key, carrier, g))
    return LayerTable(tuple(_row(m, seen) for m in found))


# ---------------------------------------------------------------- what belongs to which module


def _modules(record: Record) -> list[_Module]:
    """Find modules of which something was seen, or that hold parameters; the whole model first."""
    names = dict.fromkeys(record.modules) if record.modules else {"": None}
    found = {name: _Module(name) for name in {"": None} | names}
    for call in record.calls:
        for name in _scopes(call):
            found.setdefault(name, _Module(name)).calls += 1
    found[""].calls = len(record.calls)
    for name, leaf in _named(record):
        parts = name.split(".")
        for n in range(len(parts)):
            home = found.get(".".join(parts[:n]))
            if home is not None:
                home.leaves[leaf.id] = leaf
    _ends(record, found)
    return [m for m in found.values() if m.calls or m.leaves]


def _named(record: Record) -> Iterable[tuple[str, Value]]:
    """Give leaves by all of their names."""
    yield from record.leaves.items()
    yield from ((also, record.leaves[name]) for also, name in record.aliases.items() if name in record.leaves)


def _scopes(call: Call | None) -> set[str]:
    return {s.name for s in call.scopes} if call is not None else set()


def _ends(record: Record, found: dict[str, _Module]) -> None:
    """Say what goes into modules, and what leaves them."""
    users: dict[int, list[Call]] = {}
    for call in record.calls:
        for value in {i.value for i in call.inputs if i.value is not None and i.value.differentiable}:
            users.setdefault(value.id, []).append(call)
    for call in record.calls:
        homes = _scopes(call)
        for value in call.outputs:
            if value is None or not value.differentiable:
                continue
            use = [(user, _scopes(user)) for user in users.get(value.id, ())]
            for name in homes:
                if not use:
                    found[name].unused[value.id] = value
                elif any(name not in inside for _, inside in use):
                    found[name].units[value.id] = value
            _enters(value, use, homes, found)
    for module in found.values():
        module.units = module.units or module.unused


def _enters(value: Value, use: Sequence[tuple[Call, set[str]]], homes: set[str], found: dict[str, _Module]) -> None:
    """Note into which modules a value goes that was made outside of them."""
    for name in {n for _, inside in use for n in inside} - homes:
        if all(name in inside for _, inside in use):
            found[name].whole.add(value.id)
        else:
            found[name].parts.update((user.index, value.id) for user, inside in use if name in inside)


# ---------------------------------------------------------------- walks


def _walk_strongest(record: Record, loss: Value, seen: _Seen, values: set[int], edges: set[EdgeKey]) -> None:
    """Note strongest weights, by the compiled kernels where they are there and do."""

    def plane(key: Key, g: Plane) -> None:
        if g.high > 0:
            seen.range.append(math.log2(g.high) + g.exponent)
        if key in values or isinstance(key, tuple):
            data = g.values if isinstance(g, Spikes) else g.data
            _note(seen, key, int(data.count_nonzero()), float(data.max()) if data.numel() else 0.0, g.exponent)

    def element(key: Key, g: Any) -> None:
        if key in values or isinstance(key, tuple):
            log2 = Max.carrier.log2(g.g)
            seen.live[key], seen.top[key] = int((log2 > -math.inf).sum()), _largest(log2)

    if watch_strongest(record, loss, plane, element, values, edges):
        seen.range.append(math.inf)


def _note(seen: _Seen, key: Key, live: int, top: float, exponent: int) -> None:
    seen.live[key] = live
    seen.top[key] = math.log2(top) + exponent if live else -math.inf


def _walk_norms(record: Record, loss: Value, seen: _Seen, values: set[int]) -> None:
    """Note gradients' norms: in the model's precision, unless strongest paths come near the ends of its range."""

    def look(key: Key, carrier: Carrier, g: Any) -> None:
        if carrier is Sum.carrier:
            seen.norm[key] = _together(carrier.log2(g))
            return
        norm = float(torch.linalg.vector_norm(carrier.plain(g), dtype=torch.float64))
        if not math.isfinite(norm):
            raise OutOfRange
        seen.norm[key] = math.log2(norm) if norm else -math.inf

    limits = torch.finfo(record.precision(loss))
    low, high = math.log2(limits.tiny) + NARROW, math.log2(limits.max) - NARROW
    _walk_under(Sum, record, loss, values, look, wide=any(not low < top < high for top in seen.range))


def _walk_under(
    semiring: Semiring,
    record: Record,
    loss: Value,
    values: set[int],
    look: Callable[[Key, Carrier, Any], None],
    *,
    wide: bool = False,
) -> None:
    """Walk under a semiring: on plain numbers, and with an exponent for each where those are too narrow."""
    for carrier in [] if wide else [quick(record, loss, gradings(record, loss, [semiring]))[0].carrier]:
        try:
            _walk_elements(carrier, record, loss, values, look)
        except OutOfRange:
            break
        return
    _walk_elements(semiring.carrier, record, loss, values, look)


def _walk_elements(
    carrier: Carrier, record: Record, loss: Value, values: set[int], look: Callable[[Key, Carrier, Any], None]
) -> None:
    def keep(value: Value, g: Any) -> None:
        look(value.id, carrier, g)

    walk(record, loss, Elements(carrier, keep, wanted=values))


def _note_entropy(seen: _Seen, key: Key, carrier: Carrier, g: Any) -> None:
    seen.entropy[key] = float(carrier.plain(g).sum(dtype=torch.float64))


def _largest(log2: Tensor) -> float:
    return float(log2.max()) if log2.numel() else -math.inf


def _together(log2: Tensor) -> float:
    """Give log2 of the Euclidean norm of numbers of which log2 is given."""
    top = _largest(log2)
    return top if math.isinf(top) else top + float(torch.exp2(2 * (log2 - top)).sum().log2()) / 2


# ---------------------------------------------------------------- rows


def _row(module: _Module, seen: _Seen) -> LayerRow:
    parameters, units = sum(v.numel for v in module.leaves.values()), sum(v.numel for v in module.units.values())
    live, out = sum(seen.live.get(i, 0) for i in module.leaves), sum(seen.live.get(i, 0) for i in module.units)
    going_in = [seen.top[k] for k in (*module.whole, *module.parts) if k in seen.top]
    strongest, best = _over(module.leaves, seen.top), _over(module.units, seen.top)
    entropy = sum(seen.entropy.get(i, 0.0) for i in module.leaves) if seen.entropy else math.nan
    return LayerRow(
        module.name,
        module.calls,
        parameters,
        (parameters - live) / parameters if parameters else math.nan,
        _norm(module.leaves, seen),
        strongest,
        entropy / live if live else math.nan,
        units,
        (units - out) / units if units else math.nan,
        _norm(module.units, seen),
        best,
        max(going_in) - best if going_in and best > -math.inf and max(going_in) < math.inf else math.nan,
    )


def _over(ids: Iterable[int], found: dict[Key, float]) -> float:
    """Give the largest; nan of none."""
    return max((found.get(i, -math.inf) for i in ids), default=math.nan)


def _norm(ids: Iterable[int], seen: _Seen) -> float:
    norms = [seen.norm.get(i, -math.inf) for i in ids]
    return _together(torch.tensor(norms, dtype=torch.float64)) if norms else math.nan
