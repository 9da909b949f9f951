"""Tables of joins as text of at most 80 columns, and as HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from itertools import groupby

from .join_rows import Grid, Join

WIDTH = 80
MOST_ROWS = 24
LABEL, NAME, LEAST = 24, 22, 6  # columns of a row's label and of a branch's name: at most, at most, at least


def cell(share: float) -> str:
    """Write a share in percent, in a few letters.

    >>> [cell(s) for s in (1.0, 0.988, 0.004, 0.9996, 0.0, math.nan)]
    ['100', '98.8', '0.4', '>99.9', '0', '–']
    """
    if math.isnan(share):
        return "–"
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}".removesuffix(".0")


def text_of(grids: Sequence[Grid]) -> list[str]:
    """Write joins as lines, those of repeated blocks together."""
    return [line.rstrip() for grid in grids for line in _lines(grid)]


def labels_of(joins: Sequence[Join]) -> list[str]:
    """Name the rows of a grid: by their home, or at the top by the module call next to them; else by a number."""
    out: list[str] = []
    for home, members in groupby(joins, key=lambda j: j.home):
        same = list(members)
        near = all(j.near for j in same) and (len(same) > 1 or not home)
        names = [j.near if near else home or "(top)" for j in same]
        out += [
            f"{name} #{names[: n + 1].count(name)}" if names.count(name) > 1 else name for n, name in enumerate(names)
        ]
    return out


def _lines(grid: Grid) -> list[str]:
    stem, names = stem_of(grid.branches)
    labels = labels_of(grid.joins)
    width = min(LABEL, max(len(grid.operator), *map(len, labels)))
    widths = [max(LEAST, min(NAME, len(name))) for name in names]
    shares = grid.shares()
    lines = []
    for columns in _fitting(widths, WIDTH - width - 9):
        head = "".join(f"  {_begun(names[c]):>{widths[c]}}" for c in columns)
        lines += ["", *([] if grid.title == grid.operator else [grid.title])]
        lines.append(f"{_short(grid.operator + stem, width):<{width}}  {'paths':>6}{head}")
        for n in _shown(len(grid.joins)):
            if n is None:
                lines.append(f"{'…':<{width}}  ({len(grid.joins) - MOST_ROWS} more)")
                continue
            cells = "".join(f"  {_cell(grid.joins[n], grid.branches[c], shares[n, c]):>{widths[c]}}" for c in columns)
            lines.append(f"{_short(labels[n], width):<{width}}  {cell(grid.joins[n].share):>6}{cells}")
    return lines


def _cell(join: Join, branch: str, share: float) -> str:
    return cell(share) if any(b.name == branch for b in join.branches) else ""


def stem_of(names: Sequence[str]) -> tuple[str, list[str]]:
    """Take a word that all names begin with off them, where a number follows.

    >>> stem_of(["head 0", "head 1"]), stem_of(["experts.0", "experts.1"]), stem_of(["around", "conv1"])
    ((' head', ['0', '1']), (' experts', ['0', '1']), ('', ['around', 'conv1']))
    """
    found = [re.fullmatch(r"(.*?)[ .](\d+)", name) for name in names]
    stems = {m.group(1) for m in found if m}
    if len(stems) != 1 or not all(found) or len(names) < 2:
        return "", list(names)
    return f" {stems.pop()}", [m.group(2) for m in found if m]


def _fitting(widths: Sequence[int], room: int) -> list[list[int]]:
    """Deal columns out to as many blocks as they need."""
    out: list[list[int]] = [[]]
    used = 0
    for column, width in enumerate(widths):
        if out[-1] and used + width + 2 > room:
            out.append([])
            used = 0
        out[-1].append(column)
        used += width + 2
    return out


def _shown(count: int) -> list[int | None]:
    if count <= MOST_ROWS + 1:
        return list(range(count))
    return [*range(MOST_ROWS // 2), None, *range(count - MOST_ROWS // 2, count)]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _begun(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def html_of(title: str, grids: Sequence[Grid]) -> str:
    """Write grids as tables of HTML, darker where more paths go."""
    parts = [f"<p>{html.escape(title)}</p>"]
    for grid in grids:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.branches)
        rows = [f"<tr><th>{html.escape(grid.title)}</th><th>paths</th>{head}</tr>"]
        for label, join, shares in zip(labels_of(grid.joins), grid.joins, grid.shares(), strict=True):
            cells = "".join(
                f'<td style="background:rgba(57,135,229,{0 if math.isnan(s) else s:.2f})">{_cell(join, name, s)}</td>'
                for name, s in zip(grid.branches, shares.tolist(), strict=True)
            )
            rows.append(f"<tr><th>{html.escape(label)}</th><td>{cell(join.share)}</td>{cells}</tr>")
        parts.append(f"<table>{''.join(rows)}</table>")
    return "".join(parts)
