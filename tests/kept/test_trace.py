"""A trace that was saved and loaded answers as it did, bit for bit, or says what it cannot answer."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from programs import Program, programs
from torch import nn

import gradtrace
from gradtrace import GradtraceError, Trace
from gradtrace.errors import BadArgument, NotKept, StaleTensor
from gradtrace.kernels import native
from gradtrace.queries.paths import NoPath
from gradtrace.report.document import of_trace
from gradtrace.report.snapshot import Question

KINDS = ("best", "greedy")


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, at any depth; NaN equals itself."""
    return repr(a) == repr(b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def assert_alike(live: Trace, kept: Trace, components=None, each: int = 40) -> None:
    """Every question that both can answer, of both."""
    apart = (False, True) if live.tape.record.examples is not None else (False,)
    assert repr(live) == repr(kept)
    assert live.fallbacks == kept.fallbacks
    for kind in KINDS:
        for own in apart:
            asked = {"kind": kind, "per_example": own}
            tables = [t.influence(components, **asked) for t in (live, kept)]
            assert same(*[[asdict(t), t.by_example] for t in tables])
            for name in live.tape.leaves:
                assert same(*[asdict(t.influence(components, of=name, **asked)) for t in (live, kept)])
        for weighted in (False, True):
            assert same(*[asdict(t.flow(kind=kind, weighted=weighted)) for t in (live, kept)])
        assert same(*[asdict(t.flow(of=next(iter(live.tape.leaves)), kind=kind, weighted=True)) for t in (live, kept)])
    for name, leaf in live.tape.leaves.items():
        assert bits(live.strength[name]) == bits(kept.strength[name])
        for flat in range(0, leaf.numel, max(1, leaf.numel // each)):
            index = tuple(map(int, np.unravel_index(flat, leaf.shape))) if leaf.shape else ()
            for kind in KINDS:
                for example in (None, *range(live.tape.record.examples or 0)):
                    assert path(live, name, index, kind, example) == path(kept, name, index, kind, example)
    assert same([asdict(p) for p in live.strongest(20)], [asdict(p) for p in kept.strongest(20)])
    assert live.to_dot() == kept.to_dot()
    assert document(live) == document(kept)
    assert live._repr_html_() == kept._repr_html_()


def quiet(said: str) -> str:
    """Memory grows from one report to the next."""
    return re.sub(r"[\d,]+ MiB", "", said)


def path(trace: Trace, name: str, index, kind: str, example: int | None) -> str:
    try:
        return repr(asdict(trace.path(name, index, kind=kind, example=example)))
    except NoPath as error:
        return error.said


def document(trace: Trace) -> str:
    """Give a report, without what is said of dead parameters: why they are, only a tape can tell."""
    found = of_trace(trace, Question())
    del found["headline"]  # which is made of what was found
    for taken in found["snapshots"]:
        taken["findings"] = [f for f in taken["findings"] if f["kind"] != "dead"]
    return quiet(repr(found))


def both(trace: Trace, folder, **options: Any) -> tuple[Trace, Trace]:
    """Save a trace and load it."""
    return trace, gradtrace.load(trace.save(folder / "trace.gradtrace", **options))


def traced(program: Program) -> Trace | None:
    leaves = program.leaves()
    with gradtrace.record(names=leaves, examples=None) as tape:
        loss = program.run(leaves)
    return tape.trace(loss) if loss.requires_grad else None


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("examples", [12, pytest.param(60, marks=pytest.mark.full)])
def test_programs(examples, exact, kernels, tmp_path):
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(programs(exact))
    def check(program: Program) -> None:
        with native.using(kernels):
            try:
                trace = traced(program)
                assume(trace is not None)
                trace.forest("greedy")
            except GradtraceError:  # NaN, or an infinite loss
                assume(False)
            assert_alike(*both(trace, tmp_path))

    check()


class Words(nn.Module):
    """An embedding, a recurrent layer and attention, whose batch goes two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.out = nn.Linear(6, 5)

    def forward(self, words):
        h = self.embedding(words)
        return self.out((self.lstm(h)[0] + self.attention(h))[:, -1])


def words() -> tuple[nn.Module, Any, Any]:
    return Words(), torch.randint(40, (3, 4)), torch.randint(5, (3,))


def images() -> tuple[nn.Module, Any, Any]:
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 3)), torch.randn(4, 2, 4, 4), torch.randint(3, (4,))


def flat() -> tuple[nn.Module, Any, Any]:
    layers = nn.Linear(5, 12), nn.ReLU(), nn.LayerNorm(12), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)
    return nn.Sequential(*layers), torch.randn(4, 5), torch.randint(4, (4,))


def run(make, *, examples: bool = True) -> Trace:
    torch.manual_seed(3)
    model, x, y = make()
    with gradtrace.record(model, examples=x if examples else None) as tape:
        loss = nn.functional.cross_entropy(model(x), y)
    return tape.trace(loss, check=True)


@pytest.mark.parametrize("make", [words, images, flat])
def test_models(make, tmp_path):
    live, kept = both(run(make), tmp_path)
    assert_alike(live, kept, each=6)
    assert live.to_dataframe().equals(kept.to_dataframe())
    assert kept.certificate == live.certificate
    assert kept.loss == live.loss


def test_without_compiled_kernels(tmp_path):
    with native.using("reference"):
        assert_alike(*both(run(flat), tmp_path), each=6)


def test_a_batch_as_a_whole(tmp_path):
    assert_alike(*both(run(words, examples=False), tmp_path), each=6)


def test_slices_and_more_components_than_an_integer_has_bits(tmp_path):
    live, kept = both(run(words), tmp_path)
    heads = gradtrace.Slice("attention.self_attn", "head", 2)
    many = [*sorted(live.tape.record.modules), "attention*"] * 6
    assert len(many) > 64
    for components in ([heads, "lstm"], many):
        for kind in KINDS:
            assert same(*[asdict(t.influence(components, kind=kind)) for t in (live, kept)])


def test_saved_again_it_is_the_same_file(tmp_path):
    _, kept = both(run(flat), tmp_path)
    again = kept.save(tmp_path / "again.gradtrace")
    assert again.read_bytes() == (tmp_path / "trace.gradtrace").read_bytes()


def test_what_needs_the_tape_says_so(tmp_path):
    _, kept = both(run(flat), tmp_path)
    asked = (
        lambda: kept.why("0.weight"),
        lambda: kept.unused(),
        lambda: kept.paths("0.weight", (0, 0)),
        lambda: kept.extremes("0.weight", (0, 0)),
        lambda: kept.bound("0.weight", (0, 0)),
        lambda: kept.report(tmp_path / "page.html", semirings="entropy"),
        lambda: kept.tape.grad(torch.ones(()), "0.weight"),
        lambda: kept.tape.jacobian(0),
        lambda: kept.tape.trace(torch.ones(())),
        lambda: kept.tape.losses(),
        lambda: kept.strength[torch.ones(())],
    )
    for question in asked:
        with pytest.raises(NotKept) as error:
            question()
        assert "saved trace" in str(error.value)
        assert "\n" not in str(error.value)


def test_what_was_not_saved_is_named(tmp_path):
    _, kept = both(run(flat), tmp_path, kinds="best", per_example=False)
    assert kept.influence(per_example=False).rows
    with pytest.raises(NotKept, match="without best paths of each example: it has best paths of the batch as a whole"):
        kept.influence()
    with pytest.raises(NotKept, match="without greedy paths"):
        kept.path("0.weight", (0, 0), kind="greedy")


def test_the_report_of_a_saved_trace_says_where_it_was_made(tmp_path):
    live, kept = both(run(flat), tmp_path)
    pages = [t.report(tmp_path / f"{n}.html").read_text() for n, t in enumerate((live, kept))]
    assert quiet(pages[0]) == quiet(pages[1])
    assert kept.origin is not None
    assert kept.origin["seed"] == "3"


def test_a_step_of_the_optimizer_later_it_is_still_there(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().mean()
    kept = gradtrace.load(tape.trace(loss).save(tmp_path / "a"))
    before = kept.path("weight", (0, 1)), kept.influence()
    with torch.no_grad():
        model.weight.zero_()
    assert (kept.path("weight", (0, 1)), kept.influence()) == before


def test_saved_after_a_step_of_the_optimizer(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(4, 3)
    traces = []
    for _ in range(2):
        with gradtrace.record(model, examples=x) as tape:
            loss = model(x).square().mean()
        traces.append(tape.trace(loss))
    early = traces[0].save(tmp_path / "early").read_bytes()
    traces[1].compute(kinds=KINDS, per_example=True).compute(kinds=KINDS, per_example=False)
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(StaleTensor, match=r"trace\.compute"):
        traces[0].save(tmp_path / "late")
    late = gradtrace.load(traces[1].save(tmp_path / "late"))
    assert late.strongest(5) == gradtrace.load(tmp_path / "early").strongest(5)
    assert (tmp_path / "early").read_bytes() == early


def test_size(tmp_path):
    """Of the batch as a whole, both kinds: a few times the parameters."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 50)), torch.randn(16, 200)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().mean()
    trace = tape.trace(loss)
    parameters = sum(4 * prod(p.shape) for p in model.parameters())
    sizes = [trace.save(tmp_path / "a", kinds=k, per_example=False).stat().st_size for k in ("best", KINDS)]
    assert sizes[0] < 2 * parameters
    assert sizes[1] < 5 * parameters


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    trace = run(flat)
    file = trace.save(tmp_path / "trace")
    before = file.read_bytes()
    with pytest.raises(BadArgument, match="there is no folder"):
        trace.save(tmp_path / "none" / "trace")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadArgument, match=r"cannot write .*No space left"):
        trace.save(file, kinds="best")
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["trace"]


def _leaf(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=kind).requires_grad_()


def inputs_that_are_leaves() -> tuple[dict, Any, Any]:
    x, w = _leaf(3, 4), _leaf(4)
    return {"x": x, "w": w}, x, lambda: ((x * w).tanh().sum(1) ** 2).sum()


def a_number_and_nothing() -> tuple[dict, Any, Any]:
    a, none = _leaf(), _leaf(0, 3)
    return {"a": a, "none": none}, None, lambda: a.sin() * a + none.sum()


def the_loss_itself() -> tuple[dict, Any, Any]:
    a = _leaf()
    return {"a": a}, None, lambda: a


def complex_numbers() -> tuple[dict, Any, Any]:
    z, w = _leaf(3, kind=torch.complex64), _leaf(3)
    return {"w": w}, None, lambda: (torch.fft.fft(w * 2) * z.detach()).abs().sum()


def halves() -> tuple[dict, Any, Any]:
    w, x = _leaf(6, 4, kind=torch.bfloat16), torch.randn(3, 4, dtype=torch.bfloat16)
    return {"w": w}, x, lambda: (x @ w.t()).relu().float().square().mean()


def far_apart() -> tuple[dict, Any, Any]:
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    far = torch.tensor([1.0, 1e-200], dtype=torch.float64)
    return {"w": w}, None, lambda: (w * far * far * far).sum()  # more than one exponent can span


def an_operator_of_ones_own() -> tuple[dict, Any, Any]:
    w = _leaf(2, 2)
    return {"w": w}, None, lambda: torch.linalg.matrix_exp(w).sum()


@pytest.mark.parametrize(
    "make",
    [
        *(inputs_that_are_leaves, a_number_and_nothing, the_loss_itself, complex_numbers, halves, far_apart),
        an_operator_of_ones_own,
    ],
)
def test_odd_programs(make, tmp_path):
    torch.manual_seed(0)
    names, x, run_ = make()
    with gradtrace.record(names=names, examples=x) as tape:
        loss = run_()
    assert_alike(*both(tape.trace(loss), tmp_path))


def test_tied_and_frozen_parameters(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(4, 3)
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().mean()
    live, kept = both(tape.trace(loss), tmp_path)
    assert_alike(live, kept)
    assert kept.path("1.weight", (0, 0)) == live.path("0.weight", (0, 0))
    for name in ("1.bias", "nothing"):
        said = []
        for trace in (live, kept):
            with pytest.raises(GradtraceError) as error:
                trace.path(name, 0)
            said.append(str(error.value))
        assert said[0] == said[1]
