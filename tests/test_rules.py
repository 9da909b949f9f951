"""The public door: operators of a library of one's own take every row of the how-to, and a wrong row is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from op_samples import Found, check
from torch import Tensor

import gradtrace
from gradtrace import rules
from gradtrace.errors import CertificateError, MissingRule

HOWTO = Path(__file__).parents[1] / "docs" / "howto-rule.md"
X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
Make = Callable[..., Callable[..., Any]]
NUMBERS = count()


@pytest.fixture(scope="module")
def library() -> Iterator[torch.library.Library]:
    """A library whose operators live as long as this module."""
    with torch.library._scoped_library("gradtrace_tests", "FRAGMENT") as found:
        yield found


@pytest.fixture
def operator(library) -> Iterator[Make]:
    """Make an operator whose derivative is Python, from a schema and a function that autograd knows."""
    before = dict(rules.TABLE)
    yield lambda schema, function: made(library, f"f{next(NUMBERS)}", schema, function)
    rules.TABLE.clear()
    rules.TABLE.update(before)


def made(library: torch.library.Library, name: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    library.define(f"{name}{schema}")
    library.impl(name, function, "CompositeExplicitAutograd")

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        ctx.inputs = inputs

    def backward(ctx: Any, *grads: Any) -> Any:
        args = [t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in ctx.inputs]
        with torch.enable_grad():
            found = function(*args)
        ys = found if isinstance(found, tuple) else (found,)
        pairs = [(y, g) for y, g in zip(ys, grads, strict=True) if y.requires_grad]
        leaves = [t for t in args if isinstance(t, Tensor)]
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs]))
        return tuple(next(slopes) if isinstance(t, Tensor) else None for t in args)

    torch.library.register_autograd(f"gradtrace_tests::{name}", backward, setup_context=setup)
    return getattr(torch.ops.gradtrace_tests, name)


def name_of(op: Any) -> str:
    return f"gradtrace_tests.{op.__name__.split('.')[0]}"


def traced(program: Callable[..., Tensor], *data: Tensor) -> tuple[gradtrace.Tape, Tensor, dict[str, Tensor]]:
    leaves = {f"x{i}": t.clone().requires_grad_() for i, t in enumerate(data)}
    with gradtrace.record(names=leaves) as tape:
        y = program(*leaves.values())
        loss = (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()
    return tape, loss, leaves


def index(*values: int) -> Tensor:
    return torch.tensor(values)


# row: (schema, function, program that calls it, rule, data)
ROWS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], Any, tuple[Tensor, ...]]] = {
    "pointwise": (
        "(Tensor x, Tensor y, float s=2.0) -> Tensor",
        lambda x, y, s=2.0: (s * x).sin() * y,
        lambda f, x, y: f(x, y, 3.0),
        rules.pointwise,
        (X, X[0]),
    ),
    "moved": (
        "(Tensor x, int by=1) -> Tensor",
        lambda x, by=1: x.roll(by, 1),
        lambda f, x: f(x, 2),
        rules.moved,
        (X,),
    ),
    "moved_each": (
        "(Tensor x, Tensor y) -> Tensor",
        lambda x, y: torch.stack([x, y], 1).flatten(0, 1),
        lambda f, x, y: f(x, y),
        rules.moved_each,
        (X, X),
    ),
    "filling": (
        "(Tensor x, float value=0.0) -> Tensor",
        lambda x, value=0.0: torch.nn.functional.pad(x, (1, 0), value=value),
        lambda f, x: f(x, 3.0),
        rules.filling("value"),
        (X,),
    ),
    "weighted": (
        "(Tensor x, int scale, int[] dim) -> Tensor",
        lambda x, scale, dim: (scale * x).logsumexp(dim),
        lambda f, x: f(x, 2, [1]),
        rules.weighted(),
        (X,),
    ),
    "whole": ("(Tensor x) -> Tensor", lambda x: x.square().sum(), lambda f, x: f(x), rules.whole, (X,)),
    "selected": (
        "(Tensor x, int dim) -> (Tensor, Tensor)",
        lambda x, dim: tuple(t.clone() for t in x.sort(dim)),
        lambda f, x: f(x, 1)[0],
        rules.selected,
        (X,),
    ),
    "along": (
        "(Tensor x, float factor=2.0, int dim=0) -> Tensor",
        lambda x, factor=2.0, dim=0: x.cumsum(dim) * factor,
        lambda f, x: f(x, dim=1),
        rules.along(),
        (X,),
    ),
    "trailing": (
        "(Tensor a, Tensor b) -> Tensor",
        lambda a, b: torch.linalg.solve(a + 9 * torch.eye(3, dtype=a.dtype), b),
        lambda f, a, b: f(a, b),
        rules.trailing((1,), (2, 1)),
        (X[:, :3], X[:, 0]),
    ),
    "product": (
        "(Tensor a, Tensor b, float scale=1.0) -> Tensor",
        lambda a, b, scale=1.0: torch.einsum("ik,jk->ij", a, b) * scale,
        lambda f, a, b: f(a, b, 0.5),
        rules.product("ik,jk->ij", scale="scale"),
        (X, X),
    ),
    "written": (
        "(Tensor x, Tensor src, int at) -> Tensor",
        lambda x, src, at: x.select_scatter(src, 0, at),
        lambda f, x, y: f(x, y, 1),
        rules.written(lambda call, p: p[call.args[2]], "src"),
        (X, X[0]),
    ),
    "separable": (
        "(Tensor x) -> Tensor",
        lambda x: torch.nn.functional.avg_pool2d(x, 2),
        lambda f, x: f(x),
        rules.separable(2),
        (X.reshape(1, 1, 3, 4),),
    ),
    "pointwise_loss": (
        "(Tensor x, Tensor y) -> Tensor",
        lambda x, y: (x - y).abs().mean(),
        lambda f, x, y: f(x, y),
        rules.pointwise_loss,
        (X, 2 * X + 1),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_an_operator_of_ones_own_takes_the_row(operator, row):
    """Sum, AbsSum and Max are compared with the Jacobian that the operator's own derivative gives."""
    schema, function, program, rule, data = ROWS[row]
    f, found = operator(schema, function), Found()
    rules.register(name_of(f), rule)
    check(lambda *x: program(f, *x), tuple(t.clone().requires_grad_() for t in data), {}, found, row)
    assert not found.wrong
    assert not found.refused
    assert found.recorded[name_of(f)] == 1
    assert not [name for how, name in found.served if how == "fallback"]


def as_function(name: str, function: Callable[..., Any]) -> Any:
    """Make a custom autograd.Function of a function that autograd knows."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        args = [t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in ctx.args]
        with torch.enable_grad():
            ys = function(*args)
        pairs = [(y, g) for y, g in zip(ys if isinstance(ys, tuple) else (ys,), grads, strict=True) if y.requires_grad]
        leaves = [t for t in args if isinstance(t, Tensor)]
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs]))
        return tuple(next(slopes) if isinstance(t, Tensor) else None for t in args)

    def forward(ctx: Any, *args: Any) -> Any:
        ctx.args = args
        return function(*args)

    return type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )


# what a custom function takes in place of what an operator of a library does
PLAINER: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any, tuple[Tensor, ...]]] = {
    "pointwise": (lambda x, y: x.sin() * y, lambda f, x, y: f(x, y), rules.pointwise, (X, 2 * X)),
    "product": (lambda a, b: a @ b.T, lambda f, a, b: f(a, b), rules.product("ik,jk->ij"), (X, 2 * X)),
    "nothing": (lambda x: (0 * x).sum(0) + 1, lambda f, x: f(x), rules.nothing, (X,)),
}


@pytest.mark.parametrize("row", {**ROWS, **PLAINER})
def test_a_custom_function_takes_the_rows_that_the_how_to_offers_it_and_no_other(row):
    function, program, rule, data = PLAINER[row] if row in PLAINER else ROWS[row][1:]
    f, found = as_function(f"Row_{row}", function), Found()
    positional = lambda *args, **named: f.apply(*args, *named.values())  # noqa: E731
    rules.register(f"autograd.Row_{row}", rule)
    try:
        check(lambda *x: program(positional, *x), tuple(t.clone().requires_grad_() for t in data), {}, found, row)
    finally:
        del rules.TABLE[f"autograd.Row_{row}"]
    assert not found.wrong
    offered = re.search(rf'\| `register\("name", {row}\b.*\|(.*)\|$', HOWTO.read_text(encoding="utf-8"), re.MULTILINE)
    assert offered is not None
    assert bool(found.refused) == (offered[1].strip() != "✓")


def test_a_row_that_does_not_hold_is_an_error(operator):
    f = operator("(Tensor x, int dim) -> Tensor", lambda x, dim: x.cumsum(dim))
    rules.register(name_of(f), rules.pointwise)
    tape, loss, _ = traced(lambda x: f(x, 1), X)
    for ask in (lambda: tape.trace(loss).strength["x0"], lambda: tape.grad(loss, ["x0"])):
        with pytest.raises(CertificateError, match=rf"'pointwise' of '{name_of(f)}' \(.*test_rules\.py:\d+\)") as error:
            ask()
    assert re.search(r"#0 \(.*test_rules\.py:\d+\)", str(error.value)), "the call's own line"


def test_one_edge_missing_among_many_is_seen(operator):
    f = operator("(Tensor x) -> Tensor", lambda x: x.mul(2).index_add(0, index(0), 1e-3 * x[1:2]))
    rules.register(name_of(f), rules.pointwise)
    tape, loss, _ = traced(f, X)
    with pytest.raises(CertificateError, match="does not hold"):
        tape.grad(loss, ["x0"])


def test_a_row_that_cannot_be_asked_is_an_error(operator):
    f = operator("(Tensor x, int axis) -> Tensor", lambda x, axis: x.cumsum(axis))
    rules.register(name_of(f), rules.along())
    tape, loss, _ = traced(lambda x: f(x, 1), X)
    with pytest.raises(MissingRule, match="no argument 'dim'"):
        tape.grad(loss, ["x0"])


def test_a_row_is_compared_once(operator):
    asked: list[str] = []

    def rule(call: Any) -> Any:
        asked.append(call.name)
        return rules.pointwise(call)

    f = operator("(Tensor x) -> Tensor", torch.sin)
    rules.register(name_of(f), rule)
    tape, loss, _ = traced(lambda x: f(f(f(x))), X)
    tape.grad(loss, ["x0"])
    assert len(asked) == 4  # once for each call, and once in the comparison
    tape.grad(loss, ["x0"])
    assert len(asked) == 7


def test_float32_is_compared_in_float64(operator):
    """Weights that are tiny beside others in float32 are what they are in float64."""
    f = operator("(Tensor x, int[] dim) -> Tensor", lambda x, dim: (x * 1e4).logsumexp(dim))
    rules.register(name_of(f), rules.weighted())
    tape, loss, leaves = traced(lambda x: f(x, [1]), X.float())
    (ours,) = tape.grad(loss, ["x0"])
    assert ours.dtype is torch.float32
    torch.testing.assert_close(ours, torch.autograd.grad(loss, leaves["x0"])[0])


def test_a_custom_function_takes_a_row():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.flip(0) / 2

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].flip(0) / 2

    rules.register("autograd.Half", rules.pointwise)
    try:
        tape, loss, _ = traced(Half.apply, X)  # type: ignore[arg-type]
        with pytest.raises(CertificateError, match=r"autograd\.Half"):
            tape.grad(loss, ["x0"])
    finally:
        del rules.TABLE["autograd.Half"]


def test_operators_of_operators_keep_their_names_and_arguments(operator):
    f = operator("(Tensor x, int dim=0) -> Tensor", lambda x, dim=0: x.cumsum(dim))
    rules.register(name_of(f), rules.along())
    tape, loss, leaves = traced(lambda x: f(f(x, 1)), X)
    assert [rules.key(call) for call in tape.calls][:2] == [name_of(f)] * 2
    (ours,) = tape.grad(loss, ["x0"])
    torch.testing.assert_close(ours, torch.autograd.grad(loss, leaves["x0"])[0])


def test_the_how_to_offers_what_there_is():
    offered = set(re.findall(r"`register\(\"name\", (\w+)", HOWTO.read_text(encoding="utf-8")))
    assert offered >= set(ROWS)
    assert offered <= set(rules.__all__)
