"""What `--semiring` writes of parameters and layers: figures of the live scalars' own numbers, computed here again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import component, record
from gradtrace.queries.summaries import answers
from gradtrace.semirings import named


class Residual(nn.Module):
    """A stem, blocks with branches to name as components, a head, and a layer that nothing comes from."""

    def __init__(self, width: int = 4, blocks: int = 3):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.unused = nn.Linear(width, 1)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        h = self.stem(x) * self.scale
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return self.head(h) + 0.0 * self.unused(h)


BRANCHES = ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]


def traced(seed: int = 0):
    torch.manual_seed(seed)
    model = Residual().double()
    with record(model) as tape:
        loss = model(torch.randn(5, 3, dtype=torch.float64)).square().mean()
    return model, tape, loss, tape.trace(loss)


def said(trace, *names: str, by=BRANCHES, of="*"):
    return dict(zip(names, answers(trace, [named(n) for n in names], of, by), strict=True))


def layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def joined(numbers: dict[str, Tensor], layer: str) -> Tensor:
    return torch.cat([g.flatten() for name, g in numbers.items() if layer_of(name) == layer])


def test_layers_are_the_modules_that_hold_the_parameters():
    *_, trace = traced()
    (answer,) = said(trace, "entropy").values()
    assert [r["layer"] for r in answer["layers"]] == ["scale", "stem", *BRANCHES[1:4], "unused", "head"]
    for layer in answer["layers"]:
        own = [r for r in answer["rows"] if layer_of(r["parameter"]) == layer["layer"]]
        assert layer["scalars"] == sum(r["scalars"] for r in own)
        assert layer["live"] == sum(r["live"] for r in own)
    assert next(r for r in answer["layers"] if r["layer"] == "unused") == {"layer": "unused", "scalars": 5, "live": 0}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_entropy_and_gap_of_a_layer_are_those_of_its_scalars(seed):
    _, tape, loss, trace = traced(seed)
    found = said(trace, "entropy", "power:8")
    names = list(tape.leaves)
    entropy = dict(zip(names, tape.grad(loss, names, "entropy"), strict=True))
    power = dict(zip(names, tape.grad(loss, names, "power:8", log2=True), strict=True))
    for row, bound in zip(found["entropy"]["layers"], found["power:8"]["layers"], strict=True):
        best = joined(dict(trace.strength), row["layer"])
        live = best > -math.inf
        if not live.any():
            assert "mean" not in row
            assert "gap" not in bound
            continue
        bits, upper = (joined(numbers, row["layer"])[live] for numbers in (entropy, power))
        assert (row["mean"], row["max"]) == (pytest.approx(float(bits.mean())), pytest.approx(float(bits.max())))
        assert bound["log2_strongest"] == float(best.max())
        assert bound["log2_max"] == pytest.approx(float(upper.max()))
        assert bound["gap"] == pytest.approx(max(0.0, float(upper.max() - best.max())))
        assert 0 <= bound["gap"] <= bound["gap_max"] + 1e-9  # at the scalar of the highest bound it is at least this
        assert bound["gap_max"] == pytest.approx(float((upper - best[live]).max()))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_parts_along_the_gradient_add_up_to_it(seed):
    model, _, loss, trace = traced(seed)
    found = said(trace, "graded", "graded:abssum", "graded:max")
    gradients = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    )
    for signed, absolute, strongest in zip(*(found[n]["rows"] for n in found), strict=True):
        if not signed["live"]:
            assert "spectrum" not in signed
            continue
        assert sum(signed["along"]) == pytest.approx(float(gradients[signed["parameter"]].abs().sum()))
        for along, size, weight, largest in zip(
            signed["along"], signed["spectrum"], absolute["spectrum"], strongest["strongest"], strict=True
        ):
            assert abs(along) <= size * (1 + 1e-9) <= weight * (1 + 1e-6)
            assert largest <= weight * (1 + 1e-9)
        best = 2 ** float(trace.strength[signed["parameter"]].max())
        assert max(strongest["strongest"]) == pytest.approx(best)


def test_a_part_against_the_gradient_is_negative():
    w = torch.tensor(2.0, requires_grad=True)
    with record(names={"w": w}) as tape:
        with component("gate"):
            through = 3 * w
        loss = through - w
    trace = tape.trace(loss)
    (answer,) = said(trace, "graded", by=["gate"]).values()
    assert (answer["base"], answer["by"]) == ("sum", ["gate"])
    assert answer["rows"][0]["spectrum"] == [1, 3, 0]
    assert answer["rows"][0]["along"] == [-1, 3, 0]


def test_what_is_graded_by_is_said():
    *_, trace = traced()
    (outermost,) = said(trace, "graded:2:max", by=None).values()
    assert (outermost["base"], outermost["by"]) == ("max", [*BRANCHES, "unused"])
    assert len(outermost["layers"][0]["strongest"]) == 4
