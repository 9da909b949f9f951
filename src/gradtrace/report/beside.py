"""The page of a comparison: one HTML file in the report's style, without a script.

Each number is drawn as a line from where it was to where it is. Names are text, whatever they say.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from .changes import COLUMNS, HEADINGS, MEASURES, Change, Side
from .page import bundle, digest, shell

MOST = 200  # rows of a table
SIZE = 220.0  # of a drawing
HOW = {
    "share": "Of all (example, parameter scalar) pairs that have a path, those whose path crosses it. The ring "
    "is where it was, the dot where it is. A component that holds the parameters themselves is crossed trivially.",
    "weighted_share": "The same, each pair counted by the weight of its path: it says where the strong ones go.",
    "dead_share": "Of all (example, parameter scalar) pairs, those without a path of non-zero weight.",
    "log2_strength": "Of each parameter's scalars, the one with the strongest path: one less is half as strong.",
}
STYLE = """
.sides { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 10px 0; color: var(--soft); }
.sides b { color: var(--ink); overflow-wrap: anywhere; font-weight: 600; }
.moves td:first-child { overflow-wrap: anywhere; min-width: 14ch; }
.moves svg { display: block; }
.moves .axis { stroke: var(--line); }
.moves .was { fill: var(--card); stroke: var(--soft); stroke-width: 1.5px; }
.moves .up { stroke: var(--accent); fill: var(--accent); stroke-width: 2px; }
.moves .down { stroke: var(--lit); fill: var(--lit); stroke-width: 2px; }
"""


def render(
    title: str,
    sentences: Sequence[str],
    sides: Sequence[Side],
    changes: Sequence[Change],
    unmatched: Sequence[tuple[str, str, Sequence[str]]],
) -> str:
    """Write a comparison as a page.

    Args:
        unmatched: rows of names that were not compared: what they are names of, why, which.
    """
    style = bundle("report.css") + STYLE
    policy = f"default-src 'none'; style-src '{digest(style)}'; base-uri 'none'; form-action 'none'"
    said = "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences)
    ends = "".join(f"<span>{n}</span><b>{_text(s)}</b>" for n, s in zip(("from", "to"), sides, strict=True))
    parts = [_section(name, key, [c for c in changes if c.measure == key]) for key, name in MEASURES.items()]
    body = f"""\
<div id="app">
<header><h1>{_text(title)}</h1><div class="headline">{said}</div><div class="sides">{ends}</div></header>
{"".join(parts)}{_unmatched(unmatched)}</div>
"""
    return shell(title, policy, style, body)


def _text(given: object) -> str:
    return html.escape(str(given))


def _section(title: str, measure: str, changes: Sequence[Change]) -> str:
    moved = [c for c in changes if c.moved]
    if not changes:
        return ""
    if not moved:
        return f"<section><h2>{_text(title)}</h2><p class='note'>None of {len(changes)} moved.</p></section>"
    ends = [v for c in moved for v in (c.before, c.after) if math.isfinite(v)]
    low, high = (min(ends, default=0.0), max(ends, default=1.0)) if measure == "log2_strength" else (0.0, 1.0)
    rows = "".join(_row(c, low, high) for c in moved[:MOST])
    still = [f"{len(changes) - len(moved)} did not move."] if len(changes) > len(moved) else []
    still += [f"{len(moved) - MOST} more moved by less."] if len(moved) > MOST else []
    note = f"<p class='note'>{' '.join(still)}</p>" if still else ""
    heads = "".join(f"<th>{HEADINGS[key]}</th>" for key in COLUMNS[measure])
    heads += "".join(f"<th class='number'>{name}</th>" for name in ("before", "after", "change")) + "<th></th>"
    return (
        f"<section><h2>{_text(title)}</h2><p class='how'>{HOW[measure]}</p>"
        f"<div class='scroll'><table class='moves'><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{note}</section>"
    )


def _row(c: Change, low: float, high: float) -> str:
    cells = "".join(f"<td>{_text(cell)}</td>" for cell in (getattr(c, key) for key in COLUMNS[c.measure]))
    numbers = "".join(f"<td class='number'>{_text(cell)}</td>" for cell in c.written())
    return f"<tr>{cells}{numbers}<td>{_drawing(c, low, high)}</td></tr>"


def _drawing(c: Change, low: float, high: float) -> str:
    """Draw a line from where a number was to where it is."""

    def at(value: float) -> float:
        return 8 + (SIZE - 16) * ((min(max(value, low), high) - low) / ((high - low) or 1.0))

    a, b, look = at(c.before), at(c.after), "up" if c.change > 0 else "down"
    was = "" if c.before == -math.inf else f'<circle class="was" cx="{a:.1f}" cy="8" r="4"/>'
    now = "" if c.after == -math.inf else f'<circle class="{look}" cx="{b:.1f}" cy="8" r="4"/>'
    return (
        f'<svg width="{SIZE:.0f}" height="16" role="img" aria-label="{_text(" to ".join(c.written()[:2]))}">'
        f'<line class="axis" x1="8" x2="{SIZE - 8:.0f}" y1="8" y2="8"/>'
        f'<line class="{look}" x1="{a:.1f}" x2="{b:.1f}" y1="8" y2="8"/>{was}{now}</svg>'
    )


def _unmatched(given: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """List what could not be compared."""
    rows = "".join(
        f"<tr><td>{_text(what)}</td><td>{_text(why)}</td><td>{_text(', '.join(names))}</td></tr>"
        for what, why, names in given
    )
    if not rows:
        return ""
    return (
        "<section><h2>Not matched</h2><p class='how'>Names that one of the two alone has: nothing is said of them.</p>"
        f"<div class='scroll'><table class='moves'><tbody>{rows}</tbody></table></div></section>"
    )
