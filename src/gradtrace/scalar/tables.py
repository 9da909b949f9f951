"""Plain text tables, and numbers as a person writes them."""

from __future__ import annotations

from collections.abc import Sequence


def written(number: object) -> str:
    """Write a number with four digits; a tuple of them in brackets, an exact one, or a name, as it is.

    Lists as lists; of numbers for sets of names, each with its set.

    >>> written(0.123456), written((1.0, 2.5)), written([[1.0], [2.0]]), written("w[0]")
    ('0.1235', '(1, 2.5)', '[[1], [2]]', 'w[0]')
    >>> written({frozenset("A"): 2.0, frozenset(): 0.5})
    '{A}: 2, {}: 0.5'
    """
    if isinstance(number, float):
        return f"{number:.4g}"
    if isinstance(number, tuple):
        return f"({', '.join(map(written, number))})"
    if isinstance(number, list):
        return f"[{', '.join(map(written, number))}]"
    if isinstance(number, dict):
        return ", ".join(f"{{{' '.join(sorted(map(str, key)))}}}: {written(value)}" for key, value in number.items())
    return str(number)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write rows in columns, two spaces apart.

    >>> print(table(("a", "of"), [("1", "two"), ("10", "3")]))
    a   of
    1   two
    10  3
    """
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [heads, *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
