"""The compiled pass against the reference pass: the same strengths and the same winners, scalar by scalar."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from checks import F64, recorded, recorded_by_example
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program, programs
from torch import Tensor, nn
from torch.nn import functional

from gradtrace import Tape, record
from gradtrace.backward.backpointers import Borrowed
from gradtrace.backward.best import OutOfRange, best
from gradtrace.kernels import native
from gradtrace.queries.forest import Forest

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")
EXAMPLES = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 2.0]], **F64)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def forests(tape: Tape, loss: Tensor, *, per_example: bool = False) -> tuple[Forest, Forest]:
    """Give the forest by the compiled kernels and the one by the reference."""
    with native.using("native"):
        compiled = tape.trace(loss).forest("best", per_example=per_example)
    with native.using("reference"):
        plain = tape.trace(loss).forest("best", per_example=per_example)
    assert compiled.compact is not None
    assert plain.compact is None
    return compiled, plain


def assert_same(tape: Tape, loss: Tensor, *, per_example: bool = False, inside: bool = False) -> Forest:
    """Check leaves, or all values that have a path; the arithmetic has to be exact."""
    compiled, plain = forests(tape, loss, per_example=per_example)
    leaves = [v.id for v in tape.leaves.values()]
    for key in plain.winners if inside else leaves:
        if key in compiled.compact.planes or not inside:  # type: ignore[union-attr]
            same = compiled.log2[key].expand(plain.log2[key].shape)  # log2 itself is rounded, in another unit
            assert torch.allclose(same, plain.log2[key], rtol=0, atol=1e-12)
        if key in compiled.winners:
            assert torch.equal(compiled.winners[key].expand(plain.winners[key].shape), plain.winners[key])
    return compiled


def check(
    program: Callable[..., Tensor], leaves: dict[str, Tensor], examples: Tensor | None = None, *, per: bool = False
) -> Forest:
    given_ = {n: t.clone().requires_grad_() for n, t in leaves.items()}
    tape, loss = recorded(program, given_, examples)
    return assert_same(tape, loss, per_example=per, inside=True)


SPLITS = {
    "split": lambda x, axis: x.split([1, 2, 1][: x.shape[axis] - 1], axis),
    "chunk": lambda x, axis: x.chunk(2, axis),
    "unbind": lambda x, axis: x.unbind(axis),
}


@pytest.mark.parametrize("by", SPLITS)
@given(axis=st.integers(0, 2), order=st.randoms(use_true_random=False), some=st.booleans(), scale=st.integers(0, 60))
@settings(deadline=None, max_examples=40)
def test_what_a_tensor_was_split_into_comes_together_again(by, axis, order, some, scale):
    shape = (3, 4, 3) if by == "split" and axis == 1 else (3, 3, 3)

    def program(x: Tensor) -> Tensor:
        parts = list(enumerate(SPLITS[by](x * 1.0, axis)))
        order.shuffle(parts)
        return torch.stack([(p * (i + 1) * 2.0 ** (i * scale)).sum() for i, p in parts[some:]]).sum()

    check(program, {"x": integers(*shape)})


TIED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda e, rows: (e @ rows.t()).sum() + rows.sum(),
    "product of its transpose": lambda e, rows: (rows @ e.t()).sum() * 3,
    "pointwise": lambda e, rows: (rows.sum(0) * e).sum(),
    "rows of rows": lambda e, rows: (rows.sum(0) * functional.embedding(torch.tensor([7, 7, 3]), e)).sum(),
}


@pytest.mark.parametrize("use", TIED)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=4), st.integers(0, 3), st.integers(-140, 140), st.booleans())
@settings(deadline=None, max_examples=40)
def test_few_rows_are_compared_with_what_reaches_all(use, index, seed, scale, first):
    words = torch.tensor(index)

    def program(e: Tensor) -> Tensor:
        rows = functional.embedding(words, e)
        alone = functional.embedding(words.flip(0), e).sum() * 2.0**scale
        return alone + TIED[use](e, rows) if first else TIED[use](e, rows) + alone

    check(program, {"e": integers(20, 3, seed=seed)})


@pytest.mark.parametrize("few", [True, False])
def test_few_rows_by_example(few):
    words = torch.tensor([[1, 2], [2, 2], [5, 19]])
    numbers = integers(20 if few else 6, 3)
    words = words.clamp(max=len(numbers) - 1)
    check(lambda e: (functional.embedding(words, e) @ e.t()).sum(), {"e": numbers}, words, per=True)
    check(lambda e: functional.embedding(words, e).square().sum(), {"e": numbers}, words, per=True)


def test_the_collector_is_as_it_was_after_a_pass():
    x = torch.ones(2, **F64, requires_grad=True)
    tape, loss = recorded(lambda x: x.sum(), {"x": x})
    for on in (True, False):
        (gc.enable if on else gc.disable)()
        try:
            tape.trace(loss)
            assert gc.isenabled() == on
        finally:
            gc.enable()


# ---------------------------------------------------------------- any program


def _run(program: Program) -> tuple[Tape, Tensor]:
    return recorded(lambda **p: program.run(p), program.leaves())


@given(programs(exact=True))
@settings(deadline=None, max_examples=150)
def test_exact_programs(program):
    tape, loss = _run(program)
    assert_same(tape, loss, inside=True)


@given(programs(exact=True))
@settings(deadline=None, max_examples=100)
def test_exact_programs_by_example(program):
    found = recorded_by_example(program)
    if found is None:
        return
    tape, loss = found
    assert_same(tape, loss, per_example=True)


@given(programs(exact=False))
@settings(deadline=None, max_examples=100)
def test_programs_with_rounding_have_the_same_strengths(program):
    tape, loss = _run(program)
    compiled, plain = forests(tape, loss)
    for value in tape.leaves.values():
        assert torch.allclose(compiled.log2[value.id], plain.log2[value.id], rtol=0, atol=1e-9)


# ---------------------------------------------------------------- products put into one


X, Y, W = integers(5, 4, seed=1), integers(5, 4, seed=2), integers(3, 4, seed=3)


def test_a_weight_used_twice_is_one_product():
    forest = check(lambda w: (X @ w.t()).sum() + (Y @ w.t()).sum(), {"w": W})
    assert forest.compact is not None
    assert any(isinstance(w, Borrowed) for w in forest.compact.winners.values())  # the transposed views


def test_a_weight_used_as_it_is_and_transposed():
    check(lambda w: (X @ w.t()).sum() + (Y @ w.t()).square().sum() + (w @ X.t()).abs().sum(), {"w": W})


def test_a_product_and_something_else():
    for late in (False, True):

        def program(w: Tensor, late: bool = late) -> Tensor:
            more = (w.abs() * 3).sum()
            products = (X @ w.t()).sum() + (Y @ w.t()).sum()
            return products + (w.abs() * 5).sum() if late else more + products

        check(program, {"w": W})
        check(lambda w: program(w * 1), {"w": W})


def test_tied_weights():
    words = torch.tensor([0, 2, 2, 1])
    check(lambda e: (e[words] @ e.t()).sum(), {"e": W})


@pytest.mark.parametrize("steps", [3, 255, 256, 300])
def test_a_weight_used_at_many_steps(steps):
    def program(w: Tensor, s: Tensor) -> Tensor:
        h, out = X[:, :3], torch.zeros((), **F64)
        for t in range(steps):
            h = torch.relu(h @ w) if t < 4 else h * (-1) ** t
            out = out + (h * s).sum() * (t % 7)  # s gets a choice among all steps, w a term each
            out = out + (X[:, :3] @ w).sum() * (t % 5)
        return out

    forest = check(program, {"w": integers(3, 3, seed=5), "s": torch.ones(3, **F64)})
    assert forest.compact is not None
    choice = forest.compact.winners[forest.record.leaves["s"].id].choice
    assert choice is not None
    assert choice.dtype is (torch.int32 if steps > 256 else torch.uint8)


# ---------------------------------------------------------------- windows


def test_windows_next_to_each_other_and_more():
    check(lambda w: (w[:, :2] * 2).sum() + (w[:, 2:] * 3).sum(), {"w": W})
    check(lambda w: (w[:, :3] * 2).sum() + (w[:, 2:] * 3).sum() + (w[1:] * 2.5).sum(), {"w": W})
    check(lambda w: (w * X[:3]).sum() + (w[:, :2] * 2).sum() + (w[:, 2:] * 3).sum(), {"w": W})
    check(lambda w: (w[:, :2] * 2).sum() + (w[:, 2:] * 3).sum() + (w * X[:3]).sum(), {"w": W})


def test_windows_in_units_far_apart():
    for first, second in ((2.0**-300, 2.0**300), (2.0**300, 2.0**-300)):
        check(lambda w, a=first, b=second: (w[:, :2] * a).sum() + (w[:, 2:] * b).sum(), {"w": W})


# ---------------------------------------------------------------- by example


def test_windows_of_what_each_example_chooses_by_itself():
    """Choices by window were one plane for all examples, and others were written beyond its end."""
    own = torch.tensor([[0.0], [1.0], [5.0]], **F64)

    def program(w: Tensor) -> Tensor:
        v = w * 1
        whole = ((EXAMPLES * own) @ v).sum() * 2
        return whole + (EXAMPLES @ v[:, :1]).sum() + (EXAMPLES @ v[:, 1:]).sum() * 3

    check(program, {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]], **F64)}, EXAMPLES, per=True)


def test_an_expanded_leaf_whose_examples_choose_among_its_copies():
    """All examples read the winners of the first one."""
    scale = torch.arange(1.0, 25, **F64).reshape(3, 4, 2)
    bias = torch.tensor([1.0, 2.0], **F64)
    check(lambda b: (b.expand(3, 4, 2) * scale * EXAMPLES[:, None]).sum(), {"b": bias}, EXAMPLES, per=True)
    mixing, outer = integers(2, 4, seed=7), integers(3, 4, seed=8)
    check(lambda b: (EXAMPLES @ (b.expand(4, 2) * mixing.t()).t() * outer).sum(), {"b": bias}, EXAMPLES, per=True)


def test_products_by_example():
    def program(w: Tensor) -> Tensor:
        h = torch.relu(EXAMPLES @ w)
        return (h @ w).sum() + (EXAMPLES @ w.t()).square().sum()

    check(program, {"w": integers(2, 2, seed=9)}, EXAMPLES, per=True)


def test_embeddings_by_example():
    words = torch.tensor([[0, 1, 2], [2, 2, 0]])
    check(lambda e: (functional.embedding(words, e) @ e.t()).sum(), {"e": W}, words, per=True)


# ---------------------------------------------------------------- range


def test_a_long_shrinking_rnn_falls_back_to_the_reference():
    torch.manual_seed(0)
    w = (torch.eye(3) * 2.0**-40 + torch.eye(3).flip(0) * 2.0**-1).requires_grad_()
    u = torch.ones(3, requires_grad=True)
    with record(names={"w": w, "u": u}) as tape:
        h, out = u, torch.zeros(())
        for _ in range(2000):
            h = h @ w
            out = out + h[0]
        loss = out + h.sum()
    with pytest.raises(OutOfRange):
        best(tape.record, tape.value_of(loss))
    forest = tape.trace(loss).forest("best")
    assert forest.compact is None
    assert forest.log2[tape.leaves["u"].id].isfinite().all()


def test_a_float32_model_has_the_strengths_of_the_reference():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4), nn.LogSoftmax(-1))
    with record(model) as tape:
        loss = -model(torch.randn(5, 6)).square().mean()
    compiled, plain = forests(tape, loss)
    for value in tape.leaves.values():
        assert torch.allclose(compiled.log2[value.id], plain.log2[value.id], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 2.0**-50])
@pytest.mark.parametrize("per", [False, True])
def test_steps_that_no_exponent_holds_together(per, spread):
    """What a weight gets from the first step of many is beyond a float64 beside what it gets from the last."""
    apart = torch.tensor([1.0, spread], **F64)  # the weakest of one step is weaker than the strongest of the next
    leaves = {"w": (integers(2, 2, seed=1).abs() + 1) * apart, "u": (integers(2, seed=2).abs() + 1) * apart}

    def program(w: Tensor, u: Tensor, x: Tensor = EXAMPLES) -> Tensor:
        h = x
        for _ in range(60):
            h = (h + x @ w + u) * 2.0**-40
        return (h * apart).sum()

    given_ = {n: t.requires_grad_() for n, t in leaves.items()}
    tape, loss = recorded(program, given_, EXAMPLES if per else None)
    assert_same(tape, loss, per_example=per)
