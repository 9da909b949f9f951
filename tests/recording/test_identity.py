"""Which value a tensor stands for: views of one layout, views made under no_grad, functions, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from checks import F64, assert_sum_is_autograd, leaf, recorded
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from gradtrace import record
from gradtrace.errors import NotOnTape, Unsupported

VIEWS = {
    "unbind": lambda h: h.unbind(0),
    "split": lambda h: h.split(1),
    "chunk": lambda h: h.chunk(2),
    "indexing": lambda h: (h[0], h[1]),
    "iterating": lambda h: tuple(h),
    "narrow": lambda h: (h.narrow(0, 0, 1), h.narrow(0, 1, 1)),
    "select, of a transposed": lambda h: (h.t().select(1, 0), h.t().select(1, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_one_layout_are_values_of_their_own(name):
    leaves = {"p": leaf(1, 2)}
    seen: list[Tensor] = []

    def program(p: Tensor) -> Tensor:
        a, b = VIEWS[name]((p * 2).expand(2, 2))
        seen[:] = a, b
        return (a * 1).sum() + (b * 5).sum()

    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert [g.flatten().tolist() for g in tape.grad(loss, seen)] == [[1, 1], [5, 5]]


def test_a_view_made_under_no_grad_is_a_constant():
    leaves = {"w": leaf(4)}

    def program(w: Tensor) -> Tensor:
        h = w * 2
        with torch.no_grad():
            v = h[1:]
        return (w[1:] * v).sum()

    tape, loss = recorded(program, leaves)
    assert list(tape.leaves) == ["w"]
    assert_sum_is_autograd(tape, loss, leaves)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return x * 2, y * 3

    @staticmethod
    def backward(ctx, gx, gy):
        return gx * 2, gy * 3


def written_functions(w: Tensor) -> Tensor:
    _, h = Twice.apply(w, w + 1)
    h.unsqueeze(0)[0, 1:].cumsum_(0)
    h[::2].tanh_()
    return (h * torch.arange(1.0, 5, **F64)).sum()


def function_of_an_old_view(w: Tensor) -> Tensor:
    h = w * w
    old = h[1:3]
    h[2:].mul_(3)
    return Twice.apply(old, h)[0].sum() + h.sum()


@pytest.mark.parametrize("program", [written_functions, function_of_an_old_view])
def test_writes_around_custom_functions(program):
    leaves = {"w": leaf(4)}
    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)


@pytest.mark.parametrize("write", [Tensor.neg_, lambda h: h.copy_(h * 3), lambda h: h.data.mul_(2)])
def test_numbers_that_change_behind_autograds_back_are_those_that_were_used(write):
    leaves = {"w": leaf(3)}

    def program(w: Tensor) -> Tensor:
        h = w * w
        with torch.no_grad():
            write(h)
        return (torch.log_softmax(h, 0) * torch.arange(1.0, 4, **F64)).sum()

    tape, loss = recorded(program, leaves)
    trace = tape.trace(loss)
    for i in range(3):
        path = trace.path("w", (i,))
        assert path.log2_weight == pytest.approx(float(trace.strength["w"][i]), abs=1e-9)


def test_a_leaf_that_the_program_itself_writes_to():
    leaves = {"w": leaf(3)}

    def program(w: Tensor) -> Tensor:
        h = torch.softmax(w, 0)
        with torch.no_grad():
            w.fill_(0.7)
        return (h * torch.arange(1.0, 4, **F64)).sum() + (w * 2).sum()

    tape, loss = recorded(program, leaves)
    trace = tape.trace(loss)
    assert trace.path("w", (0,)).log2_weight == pytest.approx(float(trace.strength["w"][0]), abs=1e-9)


def test_wrapper_subclasses_are_refused_by_name():
    x, w = TwoTensor(torch.randn(2, 3), torch.randn(2, 3)), torch.randn(3, 3, requires_grad=True)
    with pytest.raises(Unsupported, match="is a TwoTensor, a subclass of"), record(names={"w": w}):
        x @ w
    held = nn.Linear(2, 2)
    held.weight = nn.Parameter(TwoTensor(held.weight.detach(), held.weight.detach()))
    with pytest.raises(Unsupported, match="the parameter 'weight' is a TwoTensor"), record(held):
        pass


def test_what_has_no_numbers_is_refused():
    with (
        pytest.raises(Unsupported, match="the parameter 'weight' is on the meta device"),
        record(nn.Linear(2, 2, device="meta")),
    ):
        pass
    x = torch.randn(3, 3).to_sparse().requires_grad_()
    with pytest.raises(Unsupported, match="sparse or nested"), record():
        torch.sparse.mm(x, torch.randn(3, 2))


def test_an_argument_whose_history_was_not_recorded_is_named():
    outside = leaf(3).exp()
    with pytest.raises(NotOnTape, match="ExpBackward"), record():
        Twice.apply(outside, leaf(3))[0].sum()


def run(code: str) -> None:
    """Run a program in a process of its own: what it tests would end this one."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


CHAIN = """
    import torch, gradtrace
    w = torch.randn(8, requires_grad=True)
    with gradtrace.record(names={{"w": w}}, examples={examples}) as tape:
        h = w * 1
        for _ in range(60_000):
            {step}
        loss = h.sum()
    del h, loss, tape
"""


@pytest.mark.parametrize("step", ["h = torch.sin(h)", "h = torch.sin(h)[:]", "h.add_(1)"])
def test_a_long_chain_is_freed(step):
    run(CHAIN.format(step=step, examples=None))


def test_a_long_chain_of_examples_is_freed():
    run(CHAIN.format(step="h = torch.sin(h); h.detach().abs()", examples="w"))


def test_a_long_chain_is_freed_after_its_certificate():
    run(
        """
        import torch, gradtrace
        w = torch.randn(4, dtype=torch.float64, requires_grad=True)
        with gradtrace.record(names={"w": w}) as tape:
            h = w * 1
            for _ in range(40_000):
                h = torch.sin(h)
            loss = h.sum()
        trace = tape.trace(loss, check=True)
        trace.path("w", 0)
        del h, loss, tape, trace
        """
    )


@pytest.mark.parametrize("make", [torch.empty_like, torch.zeros_like, lambda h: h.new_empty(h.shape)])
def test_buffers_between_a_value_and_the_function_that_takes_it(make):
    leaves = {"w": leaf(3, 4)}

    def program(w: Tensor) -> Tensor:
        h = w * w
        out = make(h)  # which autograd has no node for
        out[1:] = h[:-1]
        return Twice.apply(h, w)[0].sum() + out[1:].sum()

    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)


def zeros() -> Tensor:
    return torch.zeros(3, dtype=torch.float64)


def written_apart_then_used(w):
    buffer = zeros()
    d = buffer.detach()
    d[0] = w[0]
    s = d.sum()
    buffer[1] = w[1]
    return buffer.square().sum() + s


def written_apart_used_last(w):
    buffer = zeros()
    d = buffer.detach()
    buffer[1] = w[1]
    d[0] = w[0]
    return buffer.square().sum() + d.sum() ** 2


def of_a_followed_one(w):
    h = w * 2
    d = h.detach()
    d[0] = w[0] * 2
    h[1].mul_(3)
    return h.sum() + d.square().sum() ** 2


def after_a_write_to_a_part(w):
    h = w * 1
    h[0].mul_(-0.5)
    d = h[:2].detach()[1]
    d.mul_(w[2])
    return d.abs() + h.sum()


def by_data(w):
    buffer = zeros()
    d, e = buffer.data, buffer.detach()
    d.add_(w)
    e[1:].mul_(w[1:])
    return d.square().sum() + e.sin().sum() + buffer.sum()


def one_after_another(w):
    buffer, total = zeros(), 0
    for n in range(3):
        d = buffer.detach()
        d[n] = w[n]
        total = total + d.sum() * (n + 1)
        del d
    return total


def beside_what_was_written(w):
    buffer = torch.ones(3, dtype=torch.float64)
    last = buffer.view(-1)[-1]
    buffer[:2] += w[:2]
    return (last.square() + buffer.square().sum()) * last.clone()


def second_order(w):
    h = w * 2
    h[0].mul_(w[1])
    d = h.detach()
    d[2:].mul_(1)
    (g,) = torch.autograd.grad((h * h).sum(), w, create_graph=True)
    return g.pow(3).sum()


APART = [
    second_order,
    written_apart_then_used,
    written_apart_used_last,
    of_a_followed_one,
    after_a_write_to_a_part,
    by_data,
]
APART += [one_after_another, beside_what_was_written]


@pytest.mark.parametrize("program", APART, ids=lambda p: p.__name__)
def test_aliases_that_share_memory_but_no_history(program):
    """What is written through `detach()` or `.data` is none of the original's, for autograd."""
    leaves = {"w": leaf(3)}
    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    tape.trace(loss, check=True)


def test_what_is_read_from_the_memory_that_it_writes_to_elsewhere():
    w, x = leaf(3), torch.randn(3, dtype=torch.float64)
    with record(names={"w": w}, examples=[x]) as tape:
        h = x.sin()
        d, first = h.detach(), h.select(-1, 0)  # which share a version with it, and no base
        first.fill_(w.sum())
        d[1] -= first
        loss = d[1] * 0.5
    trace = tape.trace(loss, check=True)
    assert trace.strength["w"].tolist() == [-1.0] * 3  # log2


def written_through_a_conjugate(h):
    c = h.conj()
    c.mul_(2 + 1j)
    return h.imag.sum()


def read_through_a_conjugate(h):
    c = h.conj()
    h.mul_(2 + 1j)
    return c.real.sum()


def written_through_the_part_of_a_conjugate(h):
    part = h.conj().imag
    part.mul_(3)
    return h.imag.sum()


LAZY = [written_through_a_conjugate, read_through_a_conjugate, written_through_the_part_of_a_conjugate]


@pytest.mark.parametrize("program", LAZY, ids=lambda p: p.__name__)
@pytest.mark.parametrize("followed", [True, False])
def test_writes_that_a_lazy_conjugate_would_see_are_refused(program, followed):
    """Recording makes conjugates solid, so that the loss itself would be another one."""
    w = leaf(4)
    with (
        pytest.raises(Unsupported, match=r"lazy conjugate or negative.*x\.conj\(\)\.clone\(\)"),
        record(names={"w": w}),
    ):
        program(torch.view_as_complex(((w if followed else w.detach()) * 2).view(2, 2)))


def test_writes_after_a_conjugate_is_gone_or_to_its_copy():
    leaves = {"w": leaf(4)}

    def program(w: Tensor) -> Tensor:
        h = torch.view_as_complex((w * 2).view(2, 2))
        total = (h + h.conj()).abs().sum()
        h.mul_(2 + 1j)
        copy = h.conj().clone()
        copy.mul_(3)
        return total + (copy.imag * h.real).sum()

    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, g):
        return g * 2


@pytest.mark.parametrize("read", [lambda h, v: h, lambda h, v: v, lambda h, v: h.view(-1)[2:]])
def test_a_function_that_writes_to_a_view_is_refused(read):
    def program(w: Tensor) -> Tensor:
        h = w * 3
        view = h[1:]
        Doubled.apply(view)
        _ = w * 5
        return read(h, view).sum()

    with pytest.raises(Unsupported, match=r"mark_dirty.*clone\(\) of the view"):
        recorded(program, {"w": leaf(4)})


def test_a_function_that_writes_to_a_copy_of_a_view_and_other_writes_to_it():
    leaves = {"w": leaf(4)}

    def program(w: Tensor) -> Tensor:
        h = w * 3
        with torch.no_grad():
            h[:2].mul_(1)
        h[1:] = Doubled.apply(h[1:].clone())
        h[2:].mul_(w[2:])
        return h.sum()

    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
