"""`tape.grad`, `tape.trace` and what can go wrong when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from checks import F64, assert_sum_is_autograd, leaf, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import programs
from torch import Tensor, nn

import gradtrace
from gradtrace import AbsSum, GradtraceError, Max, Sum, Tape, record
from gradtrace.errors import NotANumber, NotOnTape, NotScalar, StaleTensor, UnknownName, Unused
from gradtrace.queries.forest import check_numbers
from gradtrace.queries.paths import NoPath
from gradtrace.recording.record import Again, Input, Saved, Value


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x * self.frozen)))


@pytest.fixture(scope="module")
def taped() -> tuple[Model, Tape, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Model().double()
    with record(model) as tape:
        out = model(torch.tensor([[1.0, -2.0], [0.5, 1.0]], **F64))
        loss = out.square().sum()
    return model, tape, out, loss


def test_inputs_are_given_by_name_or_tensor_one_or_many(taped):
    model, tape, _, loss = taped
    names = ["first.weight", "second.bias"]
    expected = torch.autograd.grad(loss, [model.first.weight, model.second.bias], retain_graph=True)
    for inputs in (names, [model.first.weight, "second.bias"], tuple(names)):
        for ours, theirs in zip(tape.grad(loss, inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch.equal(tape.grad(loss, "first.weight")[0], tape.grad(loss, [model.first.weight])[0])


def test_gradients_of_intermediate_results(taped):
    _, tape, out, loss = taped
    assert torch.equal(tape.grad(loss, out)[0], 2 * out.detach())
    assert torch.equal(tape.grad(loss, out, Max)[0], 2 * out.detach().abs())


def test_semirings_are_given_by_themselves_or_by_name(taped):
    _, tape, _, loss = taped
    for semiring in (Sum, AbsSum, Max):
        assert torch.equal(tape.grad(loss, "first.bias", semiring)[0], tape.grad(loss, "first.bias", semiring.name)[0])
    with pytest.raises(UnknownName, match=r"'min'.*sum, abssum, max"):
        tape.grad(loss, "first.bias", "min")


def test_the_gradient_of_the_loss_itself_is_one(taped):
    _, tape, _, loss = taped
    assert tape.grad(loss, loss)[0] == 1
    assert tape.trace(loss).strength[loss] == 0


def test_unused_parameters(taped):
    model, tape, _, loss = taped
    with pytest.raises(Unused, match=r"unused\.weight, unused\.bias.*allow_unused=True"):
        tape.grad(loss, ["unused.weight", "first.bias", "unused.bias"])
    found = tape.grad(loss, [model.unused.weight, "first.bias"], allow_unused=True)
    assert found[0] is None
    assert found[1] is not None
    trace = tape.trace(loss, check=True)
    assert torch.equal(trace.strength["unused.weight"], torch.full((2, 2), -math.inf, **F64))
    with pytest.raises(NoPath, match=r"unused\.weight\(0, 1\)"):
        trace.path("unused.weight", (0, 1))


def test_a_parameter_that_does_not_require_grad_says_so(taped):
    _, tape, _, loss = taped
    with pytest.raises(UnknownName, match="'frozen' does not require grad"):
        tape.grad(loss, "frozen")


def test_unknown_names_list_the_parameters(taped):
    _, tape, _, loss = taped
    with pytest.raises(UnknownName, match=r"'first'.*first\.weight, first\.bias") as error:
        tape.grad(loss, "first")
    assert isinstance(error.value, KeyError)
    assert str(error.value).startswith("unknown parameter")  # not the repr that KeyError gives
    with pytest.raises(UnknownName):
        tape.trace(loss).strength["first"]


def test_losses_that_are_none(taped):
    _, tape, out, loss = taped
    with pytest.raises(NotScalar, match=r"\(2, 1\).*mean\(\) or sum\(\)"):
        tape.trace(out)
    with pytest.raises(GradtraceError, match="must be a tensor, not float"):
        tape.trace(3.0)  # type: ignore[arg-type]
    with pytest.raises(NotOnTape, match="does not require grad"):
        tape.trace(loss.detach())
    with pytest.raises(NotOnTape, match="MulBackward"):
        tape.trace(loss * 2)  # made after the block
    with pytest.raises(NotOnTape, match="was not used in the recorded code"):
        tape.trace(leaf())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_of_any_shape_with_one_element(shape):
    leaves = {"x": leaf(3)}
    tape, loss = recorded(lambda x: (x * x).sum().reshape(shape), leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert tape.trace(loss, check=True).path("x", 0).steps[-1].index == (0,) * len(shape)


def test_two_losses_on_one_tape():
    leaves = {"x": leaf(3)}
    with record(names=leaves) as tape:
        y = leaves["x"].exp()
        one, two = y.sum(), (y * y).sum()
    assert_sum_is_autograd(tape, one, leaves)
    assert_sum_is_autograd(tape, two, leaves)
    assert tape.trace(one).strength["x"].tolist() == pytest.approx(leaves["x"].detach().exp().log2().tolist())


def test_a_leaf_as_the_loss():
    w = leaf()
    with record(names={"w": w}) as tape:
        w * 2
    trace = tape.trace(w)
    assert trace.strength["w"] == 0
    assert trace.path("w", ()).steps == ()
    assert trace.path("w", ()).log2_weight == 0


def test_leaves_without_names_are_numbered_in_order_of_use():
    a, b = leaf(2), leaf(2, seed=1)
    with record() as tape:
        loss = (b * a).sum()
    assert list(tape.leaves) == ["leaf0", "leaf1"]
    assert torch.equal(tape.grad(loss, "leaf0")[0], a.detach())
    assert list(tape.trace(loss).strength) == ["leaf0", "leaf1"]


def test_strength_is_log2_in_float64_for_every_leaf_and_recorded_tensor(taped):
    model, tape, out, loss = taped
    trace = tape.trace(loss)
    assert len(trace.strength) == 6
    for name, p in model.named_parameters():
        if p.requires_grad and "unused" not in name:
            best = tape.grad(loss, name, Max)[0]
            torch.testing.assert_close(torch.exp2(trace.strength[name]), best)
            assert torch.equal(trace.strength[p], trace.strength[name])
    torch.testing.assert_close(trace.strength[out], (2 * out.detach()).abs().log2())


def test_a_trace_knows_what_the_loss_came_to(taped):
    _, tape, _, loss = taped
    assert tape.trace(loss).loss == loss.item()


def test_nan_in_the_forward_pass_names_the_operator_and_the_module():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x) / (x - x)

    model = nn.Sequential(nn.Linear(2, 2), Broken(), nn.Linear(2, 1)).double()
    with record(model) as tape:
        loss = model(torch.ones(1, 2, **F64)).sum()
    with pytest.raises(NotANumber, match=r"aten\.div\.Tensor#\d+ in 1 \(.*test_api\.py:"):
        tape.trace(loss)


def test_nan_only_in_the_loss_or_in_a_leaf():
    x = leaf(2)
    with record(names={"x": x}) as tape:
        loss = (x.sum() * math.inf) * 0
    with pytest.raises(NotANumber, match=r"aten\.mul\.Tensor"):
        tape.trace(loss)
    y = torch.tensor([1.0, math.nan], **F64, requires_grad=True)
    with record(names={"y": y}) as tape:
        loss = y.nan_to_num().sum()
    with pytest.raises(NotANumber, match="the leaf 'y'"):
        tape.trace(loss)


def _leaves(read: list[Input]) -> list[Value]:
    return [i.value for i in read if i.value is not None and i.value.call is None]


@given(programs(exact=False), st.integers(0, 10))
@settings(deadline=None, max_examples=200)
def test_no_nan_among_the_forward_values_is_overlooked(program, place):
    data = (*program.data[:place], math.nan, *program.data[place + 1 :])
    program = replace(program, data=data)
    leaves = program.leaves()
    with record(names=leaves) as tape:
        loss = program.run(leaves)
    value = tape.value_of(loss)
    read = [i for call in tape.record.before(value) for i in call.inputs if i.value is not None]
    try:
        check_numbers(tape.record, value)
        raised = False
    except NotANumber:
        raised = True
    kept = any(i.tensor().isnan().any() for i in read if isinstance(i.saved, Saved))
    some = kept or any(i.tensor().isnan().any() for i in read if isinstance(i.saved, Again))
    some = some or any(leaves[v.name].isnan().any() for v in _leaves(read))  # named even where nothing reads the scalar
    try:
        gradtrace.scalar.from_tape(tape, loss)
        leads = False
    except NotANumber:
        leads = True
    assert (kept and leads) <= raised <= some  # what is not kept is seen where it leads to


@pytest.mark.parametrize("softmax", [torch.softmax, torch.log_softmax, torch._safe_softmax])
@given(st.integers(0, 1), st.integers(0, 39), st.sampled_from([math.nan, math.inf]))
@settings(deadline=None)
def test_nan_in_a_softmax_is_in_all_of_its_row(softmax, axis, place, number):
    x = torch.randn(2, 20, **F64, generator=torch.Generator().manual_seed(place))
    x.view(-1)[place] = number
    x.requires_grad_()
    with record(names={"x": x}) as tape:
        y = softmax(x, axis)
        loss = (y * y).nan_to_num().sum()
    row = y.detach().select(1 - axis, (place // 20, place % 20)[1 - axis])
    assert bool(row.isnan().all()) == bool(row.isnan().any())
    if row.isnan().any():
        with pytest.raises(NotANumber):
            tape.trace(loss)


def test_nan_only_in_a_derivative_names_the_operator_and_the_module():
    class Length(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.hypot(x, x.detach() * 0)

    model = nn.Sequential(Length())
    x = torch.zeros(2, **F64, requires_grad=True)
    with record(model, names={"x": x}) as tape:
        loss = model(x).sum()
    with pytest.raises(NotANumber, match=r"local derivative is NaN: aten\.hypot\.default#\d+ in 0 "):
        tape.trace(loss)


def test_an_infinite_derivative_is_the_strongest():
    leaves = {"x": torch.tensor([0.0, 4.0], **F64, requires_grad=True)}
    tape, loss = recorded(lambda x: (x.sqrt() + 100 * x).sum() * 0.5, leaves)
    trace = tape.trace(loss)
    assert trace.strength["x"].tolist() == [math.inf, math.log2(50)]
    assert trace.path("x", 0).steps[0].operator == "aten.sqrt.default"
    assert trace.path("x", 0).log2_weight == math.inf


def test_infinity_times_zero_is_no_path():
    leaves = {"x": torch.tensor([0.0, 4.0], **F64, requires_grad=True)}
    tape, loss = recorded(lambda x: (x.sqrt() * torch.tensor([0.0, 1.0], **F64)).sum(), leaves)
    assert tape.trace(loss).strength["x"].tolist() == [-math.inf, -2.0]


def test_the_strongest_paths_come_in_order():
    leaves = {
        "x": torch.tensor([3.0, 0.0, -5.0], **F64, requires_grad=True),
        "y": torch.ones((), **F64, requires_grad=True),
    }
    tape, loss = recorded(lambda x, y: (x * x).sum() + 4 * y, leaves)
    found = tape.trace(loss).strongest(10)
    assert [(p.start, p.index, round(2**p.log2_weight, 9)) for p in found] == [
        ("x", (2,), 5.0),
        ("y", (), 4.0),
        ("x", (0,), 3.0),
    ]
    assert [p.start for p in tape.trace(loss).strongest(1, "y")] == ["y"]


def test_kinds_are_named(taped):
    _, tape, _, loss = taped
    with pytest.raises(UnknownName, match=r"'strongest'.*greedy, best"):
        tape.trace(loss).path("first.bias", 0, kind="strongest")


def test_a_trace_says_what_it_is(taped):
    _, tape, _, loss = taped
    assert repr(tape.trace(loss)) == f"Trace(6 leaves, {len(tape.calls)} operator calls)"
    assert "certified to" in repr(tape.trace(loss, check=True))


def _everything(tape: Tape, loss: Tensor) -> list[object]:
    trace = tape.trace(loss, check=True)
    path = trace.path("first.weight", (0, 1), kind="greedy")
    table = trace.influence(["first"], "second*", per_example=True)
    return [tape.grad(loss, "first.weight", Max)[0].tolist(), path.log2_weight, table.rows, trace.flow().calls]


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another-recording": record,
    "default-dtype": lambda: _default(torch.bfloat16),
}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_passes_do_not_depend_on_what_is_going_on_around_them(context, dtype):
    torch.manual_seed(0)
    model, x = Model().to(dtype), torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=dtype)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    expected = _everything(tape, loss)
    with CONTEXTS[context]():
        assert _everything(tape, loss) == expected


def test_passes_inside_the_block_are_not_recorded():
    model, x = Model().double(), torch.tensor([[1.0, -2.0], [0.5, 1.0]], **F64)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
        before = len(tape.calls), list(tape.leaves)
        inside = _everything(tape, loss)
        assert (len(tape.calls), list(tape.leaves)) == before
        other = model(x).exp().sum()
    assert _everything(tape, loss) == inside
    assert_sum_is_autograd(tape, other, {n: p for n, p in model.named_parameters() if n[0] in "sf" and p.requires_grad})


def test_public_names():
    assert len(gradtrace.__all__) <= 21  # STYLE: about twenty
    assert all(hasattr(gradtrace, name) for name in gradtrace.__all__)


def test_the_fallback_reports_itself():
    x = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = torch.linalg.eigvals(x).abs().sum() + torch.linalg.eigvals(x @ x).abs().square().sum()
    trace = tape.trace(loss)
    assert trace.fallbacks == {"aten.linalg_eig.default": 2}
    assert "% of the time: aten.linalg_eig.default (2)" in repr(trace)
    assert sum(trace.forest().seconds[name] for name in trace.fallbacks) > 0


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)


def test_a_parameter_that_is_nan_is_named_and_placed():
    model, x = _small()
    with torch.no_grad():
        model[0].weight[3, 1] = model[0].weight[5, 2] = math.nan
    with record(model, examples=x) as tape:
        loss = model(x).mean()
    with pytest.raises(NotANumber, match=r"^parameter '0\.weight' is NaN at \[3, 1\], and 1 more of its 32 scalars"):
        tape.trace(loss)


def test_nan_in_examples_that_the_model_replaces_is_no_error():
    model, missing = nn.Linear(3, 1), torch.zeros(3, requires_grad=True)
    x = torch.tensor([[1.0, math.nan, 2.0], [3.0, 4.0, 5.0]])
    strengths = []
    for examples in (None, x):
        with record(model, names={"missing": missing}, examples=examples) as tape:
            loss = model(torch.where(x.isnan(), missing, x)).sum()
        strengths.append(tape.trace(loss, check=True).strength["missing"])
    assert torch.equal(*strengths)


INFINITE = {
    "divided by a number": (lambda h: h.mean() / 0.0, r"the loss is -?inf .*aten\.div\.Tensor#\d+ .*divides by zero"),
    "divided by a tensor": (lambda h: (h / torch.zeros(2)).max(), r"aten\.div\.Tensor#\d+ .*divides by zero"),
    "long before the loss": (lambda h: (h.abs().sum() * 0).log().exp().neg().reciprocal() + 1, r"\(from aten\.recip"),
    "an infinity that is masked": (
        lambda h: torch.softmax(h.masked_fill(h == h[0, 0], -math.inf), 1).sum() / 0,
        r"aten\.div\.Tensor#\d+ .*divides by zero",
    ),
}


@pytest.mark.parametrize("name", INFINITE)
def test_a_loss_that_is_infinite_names_the_operator_that_made_it_so(name):
    model, x = _small()
    program, message = INFINITE[name]
    with record(model) as tape:
        loss = program(model(x))
    with pytest.raises(NotANumber, match=message):
        tape.trace(loss)


def test_dividing_by_zero_on_the_way_is_infinite_like_any_other_derivative():
    x = torch.tensor([1.0, 2.0], **F64, requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = (x / 0.0).clamp(max=1.0).sum() + (x / -0.0).exp().sum() + x.sum()
    assert tape.trace(loss).strength["x"].tolist() == [0, 0]


@pytest.mark.parametrize("kinds", [("best",), ("best", "greedy"), "greedy"])
def test_what_was_computed_in_time_outlives_a_step(kinds):
    answers = []
    for late in (False, True):
        model, x = _small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with record(model, examples=x) as tape:
            loss = model(x).square().mean()
        trace = tape.trace(loss).compute(kinds=kinds)
        if late:
            loss.backward()
            optimizer.step()
            model(x)
        answers.append([*_read(trace)])
    assert answers[0] == answers[1]


def _read(trace: gradtrace.Trace) -> Iterator[object]:
    for kind in ("best", "greedy"):
        yield trace.influence(["0", "3"], kind=kind).rows
        yield trace.flow(kind=kind).calls
        yield trace.path("0.weight", (0, 0), kind=kind)
    yield [p.log2_weight for p in trace.paths("0.*", k=3)]
    yield trace.bound("0.weight", (0, 0))


def test_a_stale_trace_says_what_is_lazy_and_what_to_do():
    model, x = _small()
    with record(model, examples=x) as tape:
        loss = model(x).square().mean()
    trace = tape.trace(loss)
    with torch.no_grad():
        model[3].weight.add_(1)
    for late in (lambda: trace.path("0.weight", (0, 0)), lambda: trace.influence(["0"], kind="greedy"), trace.compute):
        with pytest.raises(StaleTensor, match=r"modified in place.*trace\.compute\(\) before the change") as error:
            late()
        assert str(error.value).count("trace.compute()") == 1
    with pytest.raises(StaleTensor) as error:
        tape.trace(loss)  # too late for compute(), too
    assert "compute" not in str(error.value)
