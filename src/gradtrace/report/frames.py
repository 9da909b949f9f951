"""The same figures for other programs: a table for pandas, a graph for Graphviz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..queries.flow import Flow
from ..queries.influence import influences
from ..recording.components import Component
from .snapshot import Traced, default_components

if TYPE_CHECKING:
    import pandas


def dataframe(trace: Traced, components: Sequence[Component] | None = None) -> pandas.DataFrame:
    """Give one row a parameter and component.

    Columns: parameter, scalars, log2_strength (of its strongest path), dead_share, component, share, weighted_share,
    inside; the shares are those of `Trace.influence`.
    """
    import pandas

    names, leaves = list(components or default_components(trace)), trace.tape.record.leaves
    whole, forest = trace.forest("best"), trace.forest("best", per_example=trace.tape.record.examples is not None)
    rows = []
    for (name, leaf), table in zip(leaves.items(), influences(forest, names, list(leaves)), strict=True):
        strength = float(whole.log2[leaf.id].max()) if leaf.numel else float("-inf")
        for row in table.rows:
            shares = {k: getattr(row, k) for k in ("dead_share", "component", "share", "weighted_share", "inside")}
            rows.append({"parameter": name, "scalars": leaf.numel, "log2_strength": strength} | shares)
    return pandas.DataFrame(rows)


def dot(flow: Flow) -> str:
    """Write the links between module calls as DOT; pen width and label are the share of paths."""
    names = list(dict.fromkeys(n for link in flow.links for n in (link.source, link.target)))
    number = {name: i for i, name in enumerate(names)}
    targets = {link.target for link in flow.links}
    lines = [
        f"  n{i} [label={_quoted(n or '(top)')}{'' if n in targets else ', shape=box'}];" for n, i in number.items()
    ]
    for link in flow.links:
        share = link.paths / flow.total if flow.total else 0.0
        look = f'label="{share:.1%}", penwidth={0.5 + 6 * share:.2f}, tooltip="{link.paths:g} paths"'
        lines.append(f"  n{number[link.source]} -> n{number[link.target]} [{look}];")
    return "\n".join(["digraph gradtrace {", "  rankdir=LR;", "  node [shape=ellipse];", *lines, "}"]) + "\n"


def _quoted(name: str) -> str:
    """Write a name as a string of DOT."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
