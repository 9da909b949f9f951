"""What stands out in a trace, in at most ten lines."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ..recording.components import select_leaves
from .fading import of_fading
from .findings import Finding, counted, dead_shares, earliest, findings
from .forest import Forest
from .group_names import group_named
from .joins import JoinTable, Places, joins_of
from .lost import of_dead, of_examples, of_vanished
from .markup import list_of

LINES, WIDTH = 10, 80


@dataclass(frozen=True)
class Summary:
    """Findings, and the tables that they are read off.

    Attributes:
        findings: what stands out, the strongest first.
        early: joins of the earliest parameters, or of those that were asked about.
        whole: joins of all parameters.
        dead: by parameter, the share of its scalars without a path.
        loss: what the loss came to.
    """

    findings: tuple[Finding, ...]
    early: JoinTable
    whole: JoinTable
    dead: dict[str, float]
    loss: float

    def __str__(self) -> str:
        group = group_named(self.early.of, self.early.of_all, shorten=True)
        what, paths = counted(self.early), f"{self.early.paths:,.0f}"
        title = f"loss {self.loss:.4g}; {self.early.kind} paths from {group}, {paths} of them, {what} that has one:"
        lines = textwrap.wrap(title, WIDTH)
        for finding in self.findings:
            text = finding.text.replace(f" ({what})", "").replace(f" of the paths from {group}", "")
            text = re.sub(f"^The paths from {re.escape(group)} ", "They ", text)
            more = textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
            if len(lines) + len(more) <= LINES:
                lines += more
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return list_of(str(self).partition(":\n")[0], [finding.text for finding in self.findings])


def summarise(
    forest: Forest,
    loss: float,
    of: str | Sequence[str] | None = None,
    places: Places | None = None,
    *,
    by_example: bool = False,
) -> Summary:
    """Read findings off a forest.

    Args:
        of: the parameters to be spoken of; None for those of the module that is used first.
        places: the junctions, where somebody knows them.
        by_example: have the joins of each example, too.
    """
    dead, early, whole = tables_of(forest, of, places, by_example=by_example)
    shrinking = of_vanished(forest, select_leaves(forest.record, early.of))
    lost = [*of_dead(forest, dead), *of_examples(forest, dead), *of_fading(forest), *shrinking]
    return Summary(findings(early, whole, lost), early, whole, dead, loss)


def tables_of(
    forest: Forest, of: str | Sequence[str] | None, places: Places | None, *, by_example: bool
) -> tuple[dict[str, float], JoinTable, JoinTable]:
    """Give what findings are read off: dead shares, and the joins of the earliest and of all parameters."""
    dead = dead_shares(forest)
    groups = earliest(forest, dead) if of is None else of, "*"
    early, whole = joins_of(forest, groups, by_example=by_example, places=places)
    return dead, early, whole
