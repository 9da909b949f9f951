"""How numbers are written."""


def percent(share: float | None) -> str:
    """Write a share; "–" where there is none."""
    return "–" if share is None or share != share else f"{share:.1%}"


def counted(number: int, one: str, many: str = "") -> str:
    """Write how many of something there are.

    >>> counted(1, "leaf", "leaves"), counted(3, "call")
    ('1 leaf', '3 calls')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
