"""What reaches parts of a value: put together, or merged into what is there, under any carrier."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradtrace
from gradtrace import AbsSum, Count, Max, SignedMax, Sum, TopK
from gradtrace.backward import elements
from gradtrace.kernels import native
from gradtrace.semirings import Entropy, Power

ASKED = [Sum, AbsSum, Count, Max, Power(8), Entropy, TopK(3), SignedMax]

parts = st.one_of(
    st.just(slice(None)),
    st.integers(0, 5),  # one step
    st.tuples(st.integers(0, 5), st.integers(1, 3)).map(lambda p: slice(p[0], p[0] + p[1])),
    st.tuples(st.integers(0, 1), st.just(2)).map(lambda p: slice(p[0], None, p[1])),  # every other step
    st.integers(0, 3).map(lambda n: (slice(None), n)),  # a column
    st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda p: (slice(p[0], p[0] + 3), p[1])),
)


def weights(count: int, scale: int) -> list[float]:
    """Whole numbers, none of them 0 and no two alike; powers of two where many are merged."""
    return [float((-1) ** n * (n + 1)) * 2.0 ** (scale * (n % 2)) for n in range(count)]


@given(st.lists(parts, min_size=1, max_size=8), st.sampled_from([0, -80]), st.sampled_from(["native", "reference"]))
@settings(deadline=None, max_examples=150)
def test_parts_of_a_value_in_any_order(chosen, scale, kernels):
    """Against what each scalar's edges say: the weights of the parts that it is in."""
    x = torch.arange(1.0, 25.0, dtype=torch.float64).reshape(6, 4).requires_grad_()
    given_weights = weights(len(chosen), scale)
    with gradtrace.record() as tape:
        y = x * 2.0
        loss = torch.stack([(y[part] * w).sum() for part, w in zip(chosen, given_weights, strict=True)]).sum()
    with native.using(kernels):
        found = {k.name: tape.grad(loss, x, k)[0] for k in ASKED}
    for i in range(6):
        for j in range(4):
            met = [2 * w for part, w in zip(chosen, given_weights, strict=True) if _holds(part, i, j)]
            sizes = sorted((abs(w) for w in met), reverse=True)
            assert found["sum"][i, j] == pytest.approx(sum(met), abs=1e-14 * sum(sizes))
            assert found["abssum"][i, j] == pytest.approx(sum(sizes), rel=1e-12)
            assert found["count"][i, j] == len(met)
            assert found["max"][i, j] == max(sizes, default=0)
            assert found["power:8"][i, j] == pytest.approx(sum(s**8 for s in sizes) ** (1 / 8), rel=1e-12)
            assert found["entropy"][i, j] == pytest.approx(_entropy(sizes), abs=1e-11)
            strongest = found["topk:3"][:, i, j].abs().tolist()
            assert strongest == pytest.approx((sizes + [0.0] * 3)[:3], rel=1e-12)
            ends = [min(met, default=0.0), max(met, default=0.0)]
            assert sorted(found["signedmax"][:, i, j].tolist()) == pytest.approx(ends, rel=1e-12)


def _holds(part: object, i: int, j: int) -> bool:
    there = torch.zeros(6, 4)
    there[part] = 1  # type: ignore[index]
    return bool(there[i, j])


def _entropy(sizes: list[float]) -> float:
    shares = torch.tensor(sizes, dtype=torch.float64) / (sum(sizes) or 1.0)
    return float(-(shares * shares.log2()).sum()) if sizes else 0.0


@pytest.mark.parametrize("semiring", [Sum, AbsSum, Count, Power(8), Entropy], ids=lambda k: k.name)
def test_steps_of_a_sequence_take_no_whole_sequence_each(semiring, monkeypatch):
    """All steps are put together at once: memory for the sequence is asked for once, not at every step."""
    put: list[tuple[int, ...]] = []
    together = elements.Elements._together

    def counted(self, value, windows):
        out = together(self, value, windows)
        put.append(tuple(out.g[0].shape))
        return out

    monkeypatch.setattr(elements.Elements, "_together", counted)
    x = torch.randn(30, 4, requires_grad=True)
    with gradtrace.record() as tape:
        h: Tensor = torch.zeros(4)
        for step in (x * 2).unbind():
            h = torch.tanh(h + step)
        loss = h.sum()
    tape.grad(loss, x, semiring)
    assert put == [(1, 30, 4)]
