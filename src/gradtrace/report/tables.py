"""Tables for a terminal: no word and no number is broken, and long names keep their ends, which tell more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

LEAST = 12  # to what a name is cut, if there must be room


def put(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: int = 1,
    sections: Sequence[int] = (),
) -> None:
    """Print a table that fits the console, as long as its numbers do; names are never markup.

    Args:
        rows: their cells.
        text: how many of the first columns hold text, to the left; the others hold numbers, to the right.
        sections: numbers of rows after which a line is drawn.
    """
    columns = [*zip(headings, *rows, strict=True)]
    room = console.width - 3 * len(columns) - 1
    widths, columns = fitted(columns, room, text)
    table = Table()
    for i, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        table.add_column(Text(heading), justify="left" if i < text else "right", width=width, overflow="fold")
    for n, cells in enumerate(zip(*(c[1:] for c in columns), strict=True)):
        table.add_row(*map(Text, cells), end_section=n in sections)
    console.print(table)


def fitted(columns: Sequence[Sequence[str]], room: int, text: int = 1) -> tuple[list[int], list[Sequence[str]]]:
    """Give columns their widths; what is spare is shared among those that lack some.

    Where even single words take too much room, the longest names are cut at their beginning.

    >>> fitted([["name", "encoder.layers.11.weight"], ["share", "50.0%"]], 17)
    ([12, 5], [['name', '…s.11.weight'], ['share', '50.0%']])
    """
    found = [*columns]
    least = [max(map(_word, column)) for column in found]
    while sum(least) > room and (long := [i for i in range(text) if least[i] > LEAST]):
        widest = max(long, key=least.__getitem__)
        cut = max(LEAST, min(least[widest] - 1, least[widest] - (sum(least) - room)))
        found[widest] = [" ".join(shortened(word, cut) for word in cell.split(" ")) for cell in found[widest]]
        least[widest] = cut
    full = [max(map(len, column)) for column in found]
    spare, widths = room - sum(least), [*least]
    for done, i in enumerate(sorted(range(len(found)), key=lambda i: full[i] - least[i])):
        more = min(full[i] - least[i], max(0, spare) // (len(found) - done))
        widths[i], spare = widths[i] + more, spare - more
    return widths, found


def shortened(name: str, width: int) -> str:
    """Write the end of a name that is too long.

    >>> shortened("encoder.layers.11.weight", 12)
    '…s.11.weight'
    """
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _word(cell: str) -> int:
    return max(map(len, cell.split(" ")))
