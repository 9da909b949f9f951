"""What a notebook's cell shows of a trace by itself: a table, as light as those of its other results."""

from __future__ import annotations

from collections.abc import Sequence

from ..queries.departures import living
from ..queries.forest import Forest
from ..queries.markup import note_of, table_of
from ..queries.paths import Path, follow_all
from ..queries.strongest import Strengths
from ..recording.components import select_leaves
from .snapshot import default_groups

MOST_CROSSED = 6  # modules of a path that are named
READ = (
    "A path's weight is the product of the absolute local derivatives along it, of the whole batch's best paths here; "
    "dead are the scalars from which no path leads to the loss."
)
MORE = (
    "trace.summary() says what stands out, trace.influence(), trace.joins() and trace.flow() where paths go; "
    "trace.report(path) writes the page of it all, and trace.widget() shows that here."
)
HEADINGS = ("parameters", "strongest path from", "through", "weight", "scalars", "dead")


def cell(forest: Forest, title: str) -> str:
    """Write for each group of parameters where its strongest path starts and what it crosses, and what has none.

    Args:
        forest: of the best paths of the batch as a whole.
        title: what stands above the table.
    """
    groups, strengths = default_groups(forest.record), Strengths(forest)
    members = [select_leaves(forest.record, of) for of in groups.values()]
    found = [strengths.strongest(leaves, 1) for leaves in members]
    starts = [(leaves[top[0][1]], top[0][2]) for leaves, top in zip(members, found, strict=True) if top]
    paths = iter(follow_all(forest, starts))
    rows = []
    for name, leaves, top in zip(groups, members, found, strict=True):
        scalars = sum(leaf.numel for leaf in leaves)
        dead = 1 - sum(living(forest, leaf) for leaf in leaves) / scalars if scalars else 0.0
        rows.append((name, *_ways(next(paths) if top else None), f"{scalars:,}", f"{dead:.1%}"))
    return table_of(title, HEADINGS, rows, text=3) + note_of(f"{READ} {MORE}")


def _ways(path: Path | None) -> tuple[str, str, str]:
    """Say where a path starts, which modules it crosses, and what it weighs, which no float may hold."""
    if path is None:
        return "", "", "none"
    names = [*dict.fromkeys(step.module for step in path.steps if step.module)]
    return f"{path.start}{list(path.index)}", _joined(names), f"2^{path.log2_weight:.1f}"


def _joined(names: Sequence[str]) -> str:
    """Write a way in the order in which it goes, without its middle where it is long."""
    if len(names) <= MOST_CROSSED + 1:
        return " → ".join(names)
    half = MOST_CROSSED // 2
    return " → ".join((*names[:half], f"{len(names) - 2 * half} more", *names[-half:]))
