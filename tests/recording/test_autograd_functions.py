"""Custom autograd.Functions: one operator each, with the Jacobian that their own backward states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import F64, assert_paths_have_their_strength, assert_sum_is_autograd, leaf, recorded, run
from torch import Tensor

from gradtrace import GradtraceError, Max, record
from gradtrace.errors import Unsupported
from gradtrace.recording.autograd_functions import name_of


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return g * y


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


class SumAndProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y)
        ctx.scale = scale
        return scale * (x + y), x * y

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, None, Tensor]:  # type: ignore[override]
        x, y = ctx.saved_tensors
        return ctx.scale * g + h * y, None, ctx.scale * g + h * x


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * g


class Never(torch.autograd.Function):
    """Its backward never runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("used up")


def _both(x: Tensor, y: Tensor) -> Tensor:
    total, product = SumAndProduct.apply(x, 0.5, y)
    return (total * product).sum()


PROGRAMS = {
    "one": lambda x, y: (Exponential.apply(x * y) * y).sum(),
    "two-in-a-row": lambda x, y: Exponential.apply(Exponential.apply(x * 0.1)).sum() + y.sum(),
    "its-backward-counts-not-its-forward": lambda x, y: (StraightThrough.apply(x) * y).sum(),
    "several-arguments-and-results": _both,
    "one-of-two-results": lambda x, y: SumAndProduct.apply(x, 2.0, y)[1].sum(),
    "in-place": lambda x, y: (InPlace.apply(x * 1.0) * y).sum(),
    "a-view-of-its-result": lambda x, y: (Exponential.apply(x).t()[0] * y[:, 0]).sum(),
    "its-result-as-the-loss": lambda x, y: Exponential.apply((x * y).sum() * 0.1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_and_paths_of(name):
    leaves = {"x": leaf(2, 3), "y": leaf(2, 3, seed=1)}
    tape, loss = recorded(PROGRAMS[name], leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert_paths_have_their_strength(tape.trace(loss, check=True), leaves)


def test_max_takes_one_result_or_the_other():
    leaves = {"x": leaf(2, 3), "y": leaf(2, 3, seed=1)}
    x, y = (t.detach() for t in leaves.values())
    tape, loss = recorded(_both, leaves)
    expected = torch.maximum(0.5 * (x * y).abs(), (y * 0.5 * (x + y)).abs())
    torch.testing.assert_close(run(tape, loss, leaves, Max)["x"], expected)


def test_a_path_names_the_function_and_its_place():
    tape, loss = recorded(lambda x: Exponential.apply(x).sum(), {"x": leaf(2)})
    step = tape.trace(loss).path("x", 0).steps[0]
    assert "Exponential" in step.operator
    assert step.source.split(":")[0] == __file__
    assert step.derivative == pytest.approx(leaf(2)[0].exp().item())


def test_a_backward_that_cannot_run_again_is_named():
    with record(names={"x": leaf(2)}) as tape:
        loss = Never.apply(leaf(2)).sum()
    with pytest.raises(GradtraceError, match=r"'Never'.*used up"):
        tape.trace(loss)


def test_the_users_backward_still_works_after_a_trace():
    x = leaf(2, 3)
    tape, loss = recorded(lambda x: (Exponential.apply(x) * 2).sum(), {"x": x})
    tape.trace(loss, check=True)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().exp())


def test_a_function_goes_by_its_class_name():
    assert name_of(Exponential.apply(torch.ones(2, **F64, requires_grad=True)).grad_fn) == "Exponential"


def test_a_function_whose_graph_is_gone_says_what_to_do():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    x = torch.ones(3, requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = Square.apply(x).sum()
    loss.backward()
    with pytest.raises(GradtraceError, match=r"'Square' cannot be run again: .*Ask before that, or.*retain_graph=True"):
        tape.grad(loss, "x")


class Halved(torch.autograd.Function):
    """Gives two arguments back; the gradient of the first is half of what comes."""

    @staticmethod
    def forward(ctx, x, y, *more):
        return x.clone(), y * 3

    @staticmethod
    def backward(ctx, g, h):
        return (g / 2, h * 3, *[None] * (len(ctx.needs_input_grad) - 2))


def test_a_view_made_under_no_grad_is_no_argument_that_autograd_follows():
    w, v = (torch.ones(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with record(names={"w": w, "v": v}) as tape:
        with torch.no_grad():
            view = w[::2]  # says that it requires grad, though no gradient comes through it
        loss = Halved.apply(view, v)[1].sum()
    trace = tape.trace(loss, check=True)
    assert trace.strength["v"].exp2().tolist() == [[3.0, 3.0]] * 2


def test_such_a_view_beside_what_is_no_tensor_is_named():
    w, v = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    with record(names={"w": w, "v": v}) as tape:
        with torch.no_grad():
            view = w[::2]
        loss = Halved.apply(view, v, "plain")[1].sum()
    with pytest.raises(Unsupported, match=r"'Halved' says that it requires grad.*no_grad.*detach"):
        tape.trace(loss)
