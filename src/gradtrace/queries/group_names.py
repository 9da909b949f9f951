"""How groups and lists are named in a line: each member, where they are few."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 3


def group_named(names: Sequence[str], of_all: int = 0, *, shorten: bool = False) -> str:
    """Name a group of parameters.

    Args:
        of_all: how many parameters there are.
        shorten: by the module that has them all, if there is one.

    >>> group_named(["wte.weight", "wpe.weight"], 55), group_named(["fc.weight", "fc.bias"], 55, shorten=True)
    ('wte.weight, wpe.weight', 'fc')
    >>> group_named([f"h.{n}.bias" for n in range(12)], 55), group_named([f"h.{n}.bias" for n in range(12)], 12)
    ('12 parameters, h.0.bias to h.11.bias', 'all 12 parameters')
    """
    homes = {name.rpartition(".")[0] for name in names}
    if len(names) == of_all > 1:
        return f"all {of_all} parameters"
    if shorten and len(homes) == 1 and homes != {""}:
        return homes.pop()
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{len(names)} parameters, {names[0]} to {names[-1]}"


def listed(names: Sequence[str], word: str = "and", most: int = 4) -> str:
    """Write a list in words, the first of many.

    >>> listed(["rnn", "lstm", "gru"]), listed(["a", "b", "c"], "or"), listed(list("abcdefg"), most=3)
    ('rnn, lstm and gru', 'a, b or c', 'a, b, c and 4 more')
    """
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)
    joint = word if len(shown) == len(names) else "and"
    return f" {joint} ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
