"""Products towards one value that wait for each other: what each scalar gets is what its edges say, whatever waits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import gradtrace
from gradtrace import AbsSum, Count, Max, SignedMax, Sum, TopK
from gradtrace.backward import waiting
from gradtrace.errors import NotANumber
from gradtrace.kernels import native
from gradtrace.semirings import Entropy, Power

ASKED = [Sum, AbsSum, Count, Max, Power(8), Entropy, TopK(8), SignedMax]
ROWS, COLUMNS = 5, 6

# rows of a step's product, and how the weight enters it; none: the weight is read as it is between two products
steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["mm", "linear", "bmm", "alone"])), min_size=1, max_size=9
)


@given(steps, st.sampled_from(["native", "reference"]), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=100)
def test_steps_that_share_a_weight(drawn, kernels, dtype):
    """Against all edges of each scalar, one by one: whole numbers, so that sums are exact."""
    numbers = torch.Generator().manual_seed(len(drawn))
    w = torch.randint(-3, 4, (ROWS, COLUMNS), generator=numbers).to(dtype).requires_grad_()
    edges: list[list[list[float]]] = [[[] for _ in range(COLUMNS)] for _ in range(ROWS)]
    with gradtrace.record() as tape:
        loss = (w * 0.0).sum() + w.sum() * 0.0
        for n, how in drawn:
            x = torch.randint(-3, 4, (n, ROWS), generator=numbers).to(dtype)
            c = torch.randint(1, 4, (n, COLUMNS), generator=numbers).to(dtype)
            if how == "alone":
                loss = loss + (w * 5.0).sum()
                for row in edges:
                    for cell in row:
                        cell.append(5.0)
                continue
            y = x @ w if how == "mm" else F.linear(x, w.t()) if how == "linear" else torch.bmm(x[None], w[None])[0]
            loss = loss + (y * c).sum()
            for i in range(n):
                for k in range(ROWS):
                    for j in range(COLUMNS):
                        edges[k][j].append(float(x[i, k] * c[i, j]))
    with native.using(kernels):
        found = {k.name: tape.grad(loss, w, k)[0] for k in ASKED}
    for k in range(ROWS):
        for j in range(COLUMNS):
            met = [e for e in edges[k][j] if e]
            sizes = sorted(map(abs, met), reverse=True)
            assert found["sum"][k, j] == sum(met)
            assert found["abssum"][k, j] == sum(sizes)
            assert found["max"][k, j] == max(sizes, default=0.0)
            assert found["power:8"][k, j] == pytest.approx(sum(s**8 for s in sizes) ** (1 / 8), rel=1e-5)
            assert found["topk:8"][:, k, j].abs().tolist() == (sizes + [0.0] * 8)[:8]
            assert sorted(found["signedmax"][:, k, j].tolist()) == [min(met, default=0.0), max(met, default=0.0)] or (
                not met or min(met) > 0 or max(met) < 0
            )
            shares = torch.tensor(sizes, dtype=torch.float64) / (sum(sizes) or 1.0)
            assert found["entropy"][k, j] == pytest.approx(float(-(shares * shares.log2()).sum()), abs=2e-5)
            assert found["count"][k, j] == len(met)


def loop(steps: int, rows: int, poisoned: int | None = None, *, aside: bool = False):
    """Run a cell with a product at every step; the state of one is NaN where the loss does not look.

    Args:
        aside: the weight is read first by what does not lead to the loss.
    """
    torch.manual_seed(0)
    w = torch.randn(16, 16, requires_grad=True)
    with gradtrace.record() as tape:
        h, out = torch.randn(rows, 16), []
        if aside:
            w.sum()
        for n in range(steps):
            seen = torch.where(torch.arange(16) < 8, h, torch.nan) if n == poisoned else h
            y = seen @ w
            h = torch.where(y.isnan(), 0.0, y).tanh()
            out.append(h.sum())
        loss = torch.stack(out).sum()
    return tape, loss, w


def test_the_steps_of_a_cell_are_few_products(monkeypatch):
    realised: list[int] = []
    realise = waiting.Waiting.realise

    def counted(self, carrier):
        realised.append(len(self.parts))
        return realise(self, carrier)

    monkeypatch.setattr(waiting.Waiting, "realise", counted)
    tape, loss, w = loop(24, 2)
    tape.grad(loss, w, Power(8))
    assert sum(realised) == 24
    assert len(realised) == 3  # as many scalars wait as the weight has: 8 steps of 2 × 16


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("semiring", [Max, TopK(2), Count, SignedMax], ids=lambda k: k.name)
def test_a_number_that_is_none_is_told_of_the_step_that_has_it(semiring, aside):
    tape, loss, w = loop(6, 2, poisoned=3, aside=aside)
    products = [call for call in tape.record.calls if call.base == "mm"]
    with pytest.raises(NotANumber) as told:
        tape.grad(loss, w, semiring)
    assert products[3].where in str(told.value)
    assert str(told.value).count("aten.mm") == 1
