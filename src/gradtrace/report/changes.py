"""One number in two traces: what it measures, where it was, where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .words import percent

ALL = "all parameters"


def group_of(glob: str) -> str:
    """Name a group of parameters that was asked for by a glob."""
    return ALL if glob == "*" else glob


MOST = 200  # rows of a measure that a page shows
MEASURES = {
    "share": "Paths that cross a component",
    "weighted_share": "The same, by the weight of the paths",
    "dead_share": "Parameters without a path",
    "log2_strength": "The strongest path of each parameter (log2 of its weight)",
}

HOW = {
    "share": "Of all (example, parameter scalar) pairs that have a path, those whose path crosses it. The ring "
    "is where it was, the dot where it is. A component that holds the parameters themselves is crossed trivially.",
    "weighted_share": "The same, each pair counted by the weight of its path: it says where the strong ones go.",
    "dead_share": "Of all (example, parameter scalar) pairs, those without a path of non-zero weight.",
    "log2_strength": "Of each parameter's scalars, the one with the strongest path: one less is half as strong.",
}
COLUMNS = {  # what a table of them names, besides the numbers
    "share": ("name", "of", "kind"),
    "weighted_share": ("name", "of", "kind"),
    "dead_share": ("name", "kind"),
    "log2_strength": ("name",),
}
HEADINGS = {"name": "name", "of": "paths from", "kind": "traces"}


@dataclass(frozen=True)
class Side:
    """One of two traces.

    Attributes:
        loss: of the traced batch, where it is known; `step` likewise.
        parameters: shapes by name.
    """

    name: str
    loss: float | None
    step: int | None
    parameters: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        at = "" if self.step is None else f", step {self.step}"
        return f"{self.name}{at}" + ("" if self.loss is None else f", loss {self.loss:.4g}")


@dataclass(frozen=True)
class Change:
    """One number in both.

    Attributes:
        measure: one of `MEASURES`.
        kind: "best" or "greedy".
        of: the group of parameters whose paths are meant.
        name: the component, or the parameter; of a group's dead share the group.
        before, after: -inf stands for no path.
    """

    measure: str
    kind: str
    of: str
    name: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """What came to it."""
        return 0.0 if self.before == self.after else self.after - self.before

    @property
    def moved(self) -> bool:
        """Whether a reader sees a change."""
        before, after, _ = self.written()
        return before != after

    def written(self) -> tuple[str, str, str]:
        """Write before, after and the change, as a reader wants them."""
        if self.measure == "log2_strength":
            ends = ["no path" if v == -math.inf else f"{v:.2f}" for v in (self.before, self.after)]
            moved = {math.inf: "came up", -math.inf: "died"}.get(self.change, f"{self.change:+.2f}")
            return ends[0], ends[1], moved
        return percent(self.before), percent(self.after), f"{100 * self.change:+.1f} pt"


def tables(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Write down what moved, by measure, as a page shows it: names, where it was and is, and both in words."""
    out = []
    for measure, title in MEASURES.items():
        own = [c for c in changes if c.measure == measure]
        moved = [c for c in own if c.moved]
        keys = COLUMNS[measure]
        rows = [[[getattr(c, key) for key in keys], c.before, c.after, c.written()] for c in moved[:MOST]]
        head = [HEADINGS[key] for key in keys]
        counts = {"still": len(own) - len(moved), "left_out": len(moved) - len(rows)}
        out += [{"title": title, "how": HOW[measure], "columns": head, "rows": rows} | counts] if own else []
    return out
