"""How much memory this process can still have: of the machine, of its control groups, of its address space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Give the bytes that can still be had; None where the system does not say (it is no Linux)."""
    return min([max(0, n) for n in (*_of_machine(), *_of_groups(), *_of_process())], default=None)


def _of_machine() -> Iterator[int]:
    sizes = _table(PROC / "meminfo")
    if "MemAvailable:" in sizes:
        yield sizes["MemAvailable:"] * 1024


def _of_groups() -> Iterator[int]:
    """Look at the process's control groups and at those around them, of either version."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        root = GROUPS if second else GROUPS / "memory"
        inside = root / path.lstrip("/")
        # a container sees its own group as the root, and may be told a path outside of it
        for folder in (inside, *inside.parents):
            yield from _of_group(folder, *NAMES[second])
            if folder == root:
                break


NAMES = {
    True: ("memory.max", "memory.current", "inactive_file"),
    False: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _of_group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if most.isdigit() and used.isdigit():  # or "max"
        yield int(most) - int(used) + _table(folder / "memory.stat").get(cache, 0)  # which is given up when needed


def _of_process() -> Iterator[int]:
    """Look at the limits that the process was given (`ulimit -v`)."""
    with suppress(ImportError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = _text(PROC / "self" / "statm").split()
        if most != resource.RLIM_INFINITY and pages:
            yield most - int(pages[0]) * resource.getpagesize()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _table(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    lines = [line.split() for line in _text(file).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
