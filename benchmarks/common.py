"""What the benchmarks share: the machine's name, interleaved medians, and the two files of a result."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gradtrace
from gradtrace.experiments.study_analysis import between, write_text

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Name what the numbers were measured on."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gradtrace": gradtrace.__version__,
    }


def cpu_model() -> str:
    """Read the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Give the median seconds of each, measured in turn, so that a slow minute of the machine falls on all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # a warm-up
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def show(what: str | None, marks: tuple[str, str], make: Callable[[], str], arguments: Sequence[str] | None) -> None:
    """Print a table, or put it between its marks in the page that the command line names; on one thread.

    Args:
        what: the script's docstring, for --help.
    """
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?")
    page = parser.parse_args(arguments).page
    torch.set_num_threads(1)
    text = make()
    if page is None:
        print(text)
    else:
        write_text(page, between(page, text, marks))


def save(folder: Path, name: str, table: str, content: Mapping[str, Any]) -> None:
    """Print a table, and write it as Markdown, and the numbers behind it as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table)
