"""Recording, tracing, gradients and certificates grow as the program does: four times as much, four times as long.

Two sizes, four times apart, in one process; the least CPU time of a few repeats each, which other programs disturb
little. What grows with the square takes sixteen times as long; eight is allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing import least
from torch import Tensor, nn

from gradtrace import Sum, Tape, record

ALLOWED, ATTEMPTS = 8.0, 3  # a neighbour may take the caches once, what grows does so always
Program = tuple[nn.Module, Callable[[], Tensor]]


class Unrolled(nn.Module):
    """An LSTM's cell in a Python loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cell, self.steps = nn.LSTMCell(4, 4), steps

    def forward(self, x: Tensor) -> Tensor:
        state = x, x
        for _ in range(self.steps):
            state = self.cell(x, state)
        return state[0].sum()


def cell(steps: int) -> Program:
    model, x = Unrolled(steps), torch.randn(2, 4)
    return model, lambda: model(x)


def chain(layers: int) -> Program:
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))), torch.randn(2, 4)
    return model, lambda: model(x).sum()


def norm(places: int) -> Program:
    model, x = nn.Sequential(nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8)), torch.randn(4, 2, places // 4)
    return model, lambda: model(x).square().mean()


def recorded(program: Program) -> tuple[Tape, Tensor]:
    model, loss_of = program
    with record(model) as tape:
        loss = loss_of()
    return tape, loss


def recording(program: Program) -> Callable[[], object]:
    return lambda: recorded(program)


def tracing(program: Program) -> Callable[[], object]:
    tape, loss = recorded(program)
    return lambda: tape.trace(loss)


def certifying(program: Program) -> Callable[[], object]:
    tape, loss = recorded(program)
    return lambda: tape.trace(loss, check=True)


def differentiating(program: Program) -> Callable[[], object]:
    tape, loss = recorded(program)
    return lambda: tape.grad(loss, list(tape.leaves), Sum)


ROWS = {
    "record an LSTM's cell, by steps": (recording, cell, 250),
    "record linear layers, by layers": (recording, chain, 500),
    "trace an LSTM's cell, by steps": (tracing, cell, 125),
    "trace an LSTM's cell, by many steps": (tracing, cell, 175),
    "trace linear layers, by layers": (tracing, chain, 500),
    "grad Sum of a batch norm, by places": (differentiating, norm, 40_000),
    "certify an LSTM's cell, by steps": (certifying, cell, 60),
    "certify linear layers, by layers": (certifying, chain, 125),
}


@pytest.mark.parametrize("row", ROWS)
def test_four_times_as_much_takes_about_four_times_as_long(row):
    question, make, size = ROWS[row]
    for _ in range(ATTEMPTS):
        taken = []
        for n in (size, 4 * size):
            torch.manual_seed(0)
            taken.append(least(question(make(n))))
        small, large = taken
        if large < ALLOWED * small:
            return
    assert large < ALLOWED * small, f"{row}: {size} take {small:.3f} s, {4 * size} take {large:.3f} s"
