"""What a question costs grows no faster than its work: two sizes, four times apart, take at most eight times as long.

A row names a question, makes what is asked for one size, and says the smaller size. Time is that of the process, the
least of several repeats, so that what else the machine does falls out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from growing import least
from torch import nn

from gradtrace import Trace, record
from gradtrace.kernels import native

TIMES, ALLOWED, ATTEMPTS = 4, 8.0, 3
Ask = Callable[[], object]


class Row(NamedTuple):
    """A question: `make(size)` prepares it, and gives what is measured."""

    name: str
    make: Callable[[int, Path], Ask]
    size: int
    kernels: str = "native"


def _chain(layers: int, width: int = 4, *, apart: bool = False) -> Trace:
    """Trace a chain of layers around each of which there is a way."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(width, width) for _ in range(layers)).double()
    h = torch.randn(2, width, dtype=torch.float64)
    with record(model, examples=h if apart else None) as tape:
        for layer in model:
            h = h + layer(h).tanh() / layers
        loss = h.sum()
    return tape.trace(loss)


def _wide(width: int) -> Trace:
    """Trace one layer of width² parameters."""
    torch.manual_seed(0)
    model = nn.Linear(width, width)
    with record(model) as tape:
        loss = model(torch.randn(4, width)).tanh().sum()
    return tape.trace(loss)


def influence_in_layers(size: int, folder: Path) -> Ask:
    del folder
    trace = _chain(size)
    names = [str(n) for n in range(size)]
    return lambda: trace.influence(names)


def influence_by_example_in_layers(size: int, folder: Path) -> Ask:
    del folder
    trace = _chain(size, apart=True)
    names = [str(n) for n in range(size)]

    def ask() -> object:
        trace._forests.clear()  # and so labels, and a walk of each example, every time
        trace._labels = None
        return trace.influence(names, "0.*")

    return ask


def flow_in_calls(size: int, folder: Path) -> Ask:
    del folder
    return _chain(size).flow


def path_in_its_length(size: int, folder: Path) -> Ask:
    del folder
    trace = _chain(size)
    return lambda: trace.path("0.weight", (0, 0))


def strongest_in_parameters(size: int, folder: Path) -> Ask:
    del folder
    trace = _wide(int(size**0.5))
    return lambda: trace.strongest(20)


def report_in_calls(size: int, folder: Path) -> Ask:
    trace = _chain(size)
    return lambda: trace.report(folder / "report.html", kinds=("best",))


def report_in_parameters(size: int, folder: Path) -> Ask:
    trace = _wide(int(size**0.5))
    return lambda: trace.report(folder / "report.html", kinds=("best",))


def notebook_in_calls(size: int, folder: Path) -> Ask:
    del folder
    return _chain(size)._repr_html_


def joins_in_blocks(size: int, folder: Path) -> Ask:
    del folder
    return _chain(size).joins


def joins_in_steps(size: int, folder: Path) -> Ask:
    del folder
    cell, x = nn.LSTMCell(4, 4), torch.randn(2, 4)
    with record(cell) as tape:
        state = x, x
        for _ in range(size):
            state = cell(x, state)
        loss = state[0].sum()
    return tape.trace(loss).joins


def modules_in_calls(size: int, folder: Path) -> Ask:
    del folder
    return _chain(size).layers


ROWS = [
    Row("influence in layers", influence_in_layers, 50),
    Row("influence in layers, reference kernels", influence_in_layers, 50, "reference"),
    Row("influence by example in layers", influence_by_example_in_layers, 50),
    Row("flow in calls", flow_in_calls, 50),
    Row("flow in calls, reference kernels", flow_in_calls, 50, "reference"),
    Row("joins in blocks", joins_in_blocks, 100),
    Row("joins in steps", joins_in_steps, 100),
    Row("layers in calls", modules_in_calls, 25),
    Row("a path in its length", path_in_its_length, 100),
    Row("strongest paths in parameters", strongest_in_parameters, 1 << 16),
    Row("a report in calls", report_in_calls, 25),
    Row("a notebook's page in calls", notebook_in_calls, 100),
    Row("a report in parameters", report_in_parameters, 1 << 16),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_growth(row: Row, tmp_path: Path):
    with native.using(row.kernels):
        small, large = row.make(row.size, tmp_path), row.make(TIMES * row.size, tmp_path)
        large()  # a warm-up
        for _ in range(ATTEMPTS):
            growth = least(large) / least(small)
            if growth <= ALLOWED:
                break
    assert growth <= ALLOWED, f"{row.name}: {TIMES} times the size took {growth:.1f} times as long"


def test_what_grows_with_the_square_of_its_size_is_found(tmp_path: Path):
    def squares(size: int, folder: Path) -> Ask:
        del folder
        return lambda: sum(1 for _ in range(size * size))

    with pytest.raises(AssertionError, match="squares: 4 times the size took"):
        test_growth(Row("squares", squares, 200), tmp_path)
