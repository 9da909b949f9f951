"""Tables as matplotlib draws them; each gives the axes that it drew on. They need `pip install 'gradtrace[draw]'`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "cividis"
PATHS, WEIGHT = "#0b5fa5", "#e69f00"


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Give the axes that were given, or new ones of a size in inches.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise BadArgument("plot needs matplotlib: pip install 'gradtrace[draw]'") from None
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def draw_bars(
    names: Sequence[str],
    shares: Sequence[float],
    label: str,
    ax: Axes | None = None,
    weighted: Sequence[float] | None = None,
) -> Axes:
    """Draw a bar for each name, the first at the top, and a thinner one of its weighted share."""
    ax = axes(ax, 6.4, 0.8 + 0.3 * len(names))
    at = range(len(names))[::-1]
    ax.barh(at, shares, 0.7, label="paths", color=PATHS)
    if weighted is not None:
        ax.barh(at, weighted, 0.25, label="by weight", color=WEIGHT)
        ax.legend(loc="lower right")
    ax.set_yticks(at, names)
    ax.set_xlim(0, 1)
    ax.set_xlabel(label)
    return ax


def draw_grid(
    shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, ax: Axes | None = None
) -> Axes:
    """Draw shares, rows × columns, as shades with their percentages; where there is none, nothing."""
    ax = axes(ax, 2.4 + 0.9 * len(columns), 1.2 + 0.3 * len(rows))
    ax.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    for (row, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            ink = "black" if share > 0.5 else "white"
            ax.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color=ink)
    ax.set_title(title)
    return ax


def draw_dots(names: Sequence[str], found: Mapping[str, Sequence[float]], label: str, ax: Axes | None = None) -> Axes:
    """Draw numbers beside their names, the first at the top, in a colour for each kind, where they are finite."""
    ax = axes(ax, 6.4, 0.8 + 0.22 * len(names))
    at = range(len(names))[::-1]
    for colour, (kind, numbers) in zip((WEIGHT, PATHS), found.items(), strict=False):
        ax.plot([n if math.isfinite(n) else math.nan for n in numbers], at, "o", label=kind, color=colour)
    ax.set_yticks(at, names)
    ax.set_xlabel(label)
    ax.grid(axis="y", alpha=0.3)
    ax.legend()
    return ax


def draw_lines(lines: Mapping[str, Iterable[tuple[Any, float]]], label: str, ax: Axes | None = None) -> Axes:
    """Draw shares over steps, a line for each name."""
    ax = axes(ax, 6.4, 4.0)
    for name, points in lines.items():
        steps, shares = zip(*points, strict=True) if points else ((), ())
        ax.plot(steps, shares, marker="o", label=name)
    ax.set_ylim(0, 1)
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    if lines:
        ax.legend()
    return ax
