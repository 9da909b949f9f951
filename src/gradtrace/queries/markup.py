"""Tables as notebooks show them: HTML, in which names are text."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table_of(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Write a table.

    Args:
        rows: their cells.
        text: how many of the first columns hold text, to the left.
    """
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:{'left' if i < text else 'right'}'>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<p>{html.escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def list_of(title: str, items: Sequence[str]) -> str:
    """Write a list of sentences."""
    return f"<p>{html.escape(title)}</p><ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"


def note_of(text: str) -> str:
    """Write what stands below a table."""
    return f"<p><small>{html.escape(text)}</small></p>"
