"""How numbers and lists are written."""

from collections.abc import Sequence


def percent(share: float | None) -> str:
    """Write a share; "–" where there is none."""
    return "–" if share is None or share != share else f"{share:.1%}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Write a list in words.

    >>> listed(["rnn", "lstm", "gru"])
    'rnn, lstm and gru'
    """
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def counted(number: int, one: str, many: str = "") -> str:
    """Write how many of something there are.

    >>> counted(1, "leaf", "leaves"), counted(3, "call")
    ('1 leaf', '3 calls')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
