"""In-place operators and views of mutated tensors: Sum is autograd's gradient, whatever was written where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from checks import (
    F64,
    assert_paths_have_their_strength,
    assert_semirings_agree,
    assert_sum_is_autograd,
    autograd,
    leaf,
    recorded,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradtrace.recording.layouts import Layout, positions
from gradtrace.recording.storage import Cell, disjoint, layout_of, overlay

W = torch.arange(1.0, 13.0, **F64).reshape(3, 4)
PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {}


def program(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    PROGRAMS[f.__name__] = f
    return f


@program
def a_row_is_copied_over(x):
    h = x * 2
    h[1].copy_(x[0])
    return (h * W).square().sum()


@program
def an_older_view_is_read_after_writes(x):
    h = x * 2
    v = h.view(4, 3)
    h[0] = x[2]
    h[:, 1:3] *= h[:, :2].clone()
    return (v.square() * W.reshape(4, 3)).sum()


@program
def parts_are_overwritten_by_constants(x):
    h = x * x
    h[0].zero_()
    h[:, 1].fill_(2.0)
    return (h.exp() * W).sum()


@program
def all_is_overwritten_by_constants(x):
    h = x * 2
    h.copy_(W)
    return (h * x).sum()


@program
def overwritten_then_written_again(x):
    h = x * 2
    h.zero_()
    h[0] += x[1]
    return (h * h * W).sum() + x.sum()


@program
def relu_in_place(x):
    h = x * 1.0
    F.relu_(h)
    return (h + x).square().sum()


@program
def gates_of_one_projection_are_activated_in_place(x):
    a, b = (x * 1.0).unsafe_chunk(2, 1)
    a.sigmoid_()
    b.tanh_()
    return (a * b).square().sum()


@program
def columns_are_scaled_in_place_and_the_whole_is_read(x):
    h = x * x
    h[:, :2].mul_(3)
    h[:, 2:].neg_()
    return (h * W).sum()


@program
def a_view_with_changed_strides_is_written(x):
    h = x * 1.0
    v = h[1:].t()[::2]
    v.mul_(x[0, :2].view(2, 1))
    return (h * W).sum() + v.square().sum()


@program
def transposed_in_place(x):
    h = x * 1.0
    h.transpose_(0, 1)
    h[0] = h[1] * 2
    return (h.t() * W).square().sum()


@program
def squeezed_and_unsqueezed_in_place(x):
    return ((x * 1.0).unsqueeze_(0).squeeze_(0).t_() * W.t()).square().sum()


@program
def an_expanded_view_sees_the_write(x):
    h = x[:, :1] * 1.0
    e = h.expand(3, 4)
    h.mul_(2)
    return (e * W).square().sum()


@program
def written_under_no_grad(x):
    h = x * 2
    with torch.no_grad():
        h[0] = 5.0
        h[1].add_(1)
    return h.exp().sum()


@program
def written_through_detach(x):
    h = x * 2
    h.detach().mul_(0.5)
    return h.exp().sum()


@program
def written_through_data_while_a_view_waits(x):
    h = x * 2
    v = h.view(-1)
    h.data[1] = 0.5
    h[0].mul_(3)
    return v.exp().sum()


@program
def a_buffer_of_constants_is_filled(x):
    b = torch.zeros(5, 3, 4, **F64)
    for i in range(5):
        b[i] = x * i if i % 2 else b[i - 1] + x
    return b.square().sum()


@program
def a_scalar_accumulates(x):
    total = torch.zeros((), **F64)
    for row in x:
        total += row.square().sum()
        total *= 1.5
    return total


@program
def a_view_made_before_the_buffer_took_part(x):
    h = torch.zeros(3, 4, **F64)
    v, row = h.view(-1), h[0]
    row.add_(x[1])
    h.add_(x)
    return (v * v).sum() + row.sum()


@program
def written_by_index_tensors_and_masks(x):
    h = torch.zeros(6, 4, **F64)
    h[torch.tensor([0, 3, 5])] = x
    h[1:3] = x[:2] * 2
    h[4, ::2] = x[0, 1::2]
    h[h > 1] = 0.5
    h.masked_fill_(h < -1, 0.25)
    return h.pow(3).sum()


@program
def accumulated_by_index(x):
    h = x * 1.0
    h.index_put_((torch.tensor([0, 2, 0]),), x * 2, accumulate=True)
    h.index_add_(0, torch.tensor([1, 1]), x[:2])
    return h.pow(3).sum()


@program
def scattered(x):
    h = torch.zeros(3, 4, **F64)
    h.scatter_(1, torch.tensor([[0], [1], [2]]), x[:, :1])
    h.scatter_add_(1, torch.tensor([[0], [1], [1]]), x[:, 1:2])
    h.masked_scatter_(torch.eye(3, 4).bool(), x)
    return h.pow(3).sum()


@program
def a_column_view_sees_an_indexed_write(x):
    h = x * 1.0
    v = h[:, 1]
    h[torch.tensor([0, 2]), torch.tensor([1, 1])] = x[0, :2] * 3
    return v.pow(3).sum()


@program
def overlapping_windows(x):
    h = x.reshape(-1) * 1.0
    a, b = h[:8], h[4:]
    a.mul_(2)
    b.exp_()
    return (a * torch.arange(8, **F64)).sum() + b.sum() + h.square().sum()


@program
def rows_are_swapped(x):
    h = x * 1.0
    kept = h[0].clone()
    h[0] = h[1]
    h[1] = kept
    return (h * W).square().sum()


@program
def the_diagonal_is_written(x):
    h = x * 1.0
    h.diagonal().mul_(3)
    h.diagonal()[1:].copy_(x[:2, 0])
    return (h * W).square().sum()


@program
def a_window_is_written_through_as_strided(x):
    h = x * 1.0
    h.as_strided((2, 2), (4, 1), 1).mul_(5)
    return (h * W).square().sum()


@program
def as_strided_reads_a_transposed_tensor(x):
    return (x * 1.0).t()[1:].as_strided((2, 3), (1, 2), 1).square().sum()


@program
def two_views_of_one_layout(x):
    h = x * 1.0
    a, b = h.view(12), h.view(12)
    a.mul_(2)
    b.add_(1)
    return (a * b).sum() + (h * h * W).sum()


@program
def unbound_split_and_chunked_rows_are_read(x):
    h = x * 1.0
    first, *_ = h.unbind(0)
    left, right = h.split([1, 3], 1)
    top, *_ = h.chunk(3)
    return (first.sum() * left).sum() + (right * top[:, 1:]).sum()


@program
def storage_is_reused_after_tensors_die(x):
    total = torch.zeros((), **F64)
    for i in range(50):
        a = x * i
        b = a.sin()
        del a
        total = total + (b + 1).square().sum()
        del b
    return total


@program
def a_constant_changes_between_uses(x):
    factor = torch.ones(3, 4, **F64)
    first = (x.detach() * factor).sum() * x.sum()
    factor.mul_(2)
    return first + (x * factor.clone()).square().sum()


@program
def random_numbers_overwrite_a_row(x):
    h = x * 1.0
    h[0].normal_()
    h[1].bernoulli_(0.5)
    h[2, :2].uniform_()
    return (h * x).sum()


@program
def two_dtypes(x):
    h = torch.zeros(3, 4)
    h.copy_(x)
    h[0] += x[1]
    return h.square().sum().double()


@program
def many_kinds_in_a_row(x):
    h = x * 1.0
    h.clamp_(min=-0.5)
    h.sub_(x, alpha=2)
    h.neg_()
    h.lerp_(x * x, 0.3)
    h.addcmul_(x, x, value=2.0)
    h.addmm_(x[:, :3].clone(), x)
    h.cumsum_(1)
    return (h * W).sum()


@program
def index_copied_filled_and_put(x):
    h = x * 1.0
    h.narrow(0, 0, 2).copy_(x[1:])
    h.select(1, 0).add_(1)
    h.index_copy_(0, torch.tensor([2]), x[:1])
    h.index_fill_(1, torch.tensor([3]), 0.0)
    h.put_(torch.tensor([5]), x[0, 0].reshape(1))
    return (h * W).square().sum()


@program
def detached_in_place(x):
    h = x * 2
    y = h * 1
    h.detach_()
    return (y * h * x).sum()


@program
def a_detached_alias_is_written_by_something_followed(x):
    h = x * 2
    d = h.detach()
    d.mul_(x)
    return (h.exp() * d).sum()


@program
def an_empty_view_is_read_after_a_write(x):
    h = x * 2
    v = h[:0]
    h.mul_(2)
    return v.sum() + (h * W).sum()


@pytest.mark.parametrize("examples", [None, W], ids=["plain", "with-examples"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_and_paths_of(name, examples):
    leaves = {"x": leaf(3, 4)}
    tape, loss = recorded(PROGRAMS[name], leaves, examples)
    assert list(tape.leaves) == ["x"]
    tolerance = 1e-6 if name == "two_dtypes" else 1e-10
    assert_sum_is_autograd(tape, loss, leaves, tolerance)
    assert_semirings_agree(tape, loss, leaves, tolerance)
    assert_paths_have_their_strength(tape.trace(loss, check=True), leaves, 4)


def test_empty_tensors_are_concatenated_sliced_and_multiplied():
    def with_empty(x: Tensor, e: Tensor) -> Tensor:
        cached = torch.cat([torch.empty(0, **F64), x.flatten()])
        return (
            cached.square().sum()
            + torch.cat([e, x]).sum()
            + (e @ x.t()).sum()
            + (x.t()[:, :0] @ e + 1).sum()
            + (x[:0] + x[0]).sum()
            + F.layer_norm(e, (4,)).sum()
            + e.softmax(1).sum()
            + F.embedding(torch.zeros(0, dtype=torch.long), x).sum()
        )

    leaves = {"x": leaf(3, 4), "e": leaf(0, 4)}
    tape, loss = recorded(with_empty, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert tape.trace(loss, check=True).strength["e"].shape == (0, 4)


def test_scalars_go_through_operators_that_expect_axes():
    def zero_dimensional(x: Tensor, y: Tensor) -> Tensor:
        normalised = x.softmax(0) * 2 + x.log_softmax(-1) + x.logsumexp(0)
        reduced = x.mean() + x.max() + x.prod() + x.cumsum(0) + x.sort(0).values
        shaped = torch.stack([x, y]).square().sum() + x.view(1).squeeze() + x.expand(3).sum() + x[None, None].sum()
        return normalised + reduced + shaped

    leaves = {"x": leaf(), "y": leaf()}
    tape, loss = recorded(zero_dimensional, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert_paths_have_their_strength(tape.trace(loss, check=True), leaves)


# ---------------------------------------------------------------- random programs

Step = tuple[str, int, int]
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda t: t.t() if t.dim() == 2 else t.unsqueeze(0),
    "first": lambda t: t[:1],
    "others": lambda t: t[..., ::2],
    "row": lambda t: t[-1],
    "flat": lambda t: t.reshape(-1),
    "half": lambda t: t.chunk(2, -1)[0],
    "expand": lambda t: t.expand(2, *t.shape) if t.dim() < 3 else t,
}
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add_": lambda t, o: t.add_(o),
    "mul_": lambda t, o: t.mul_(o.clone()),
    "copy_": lambda t, o: t.copy_(o),
    "zero_": lambda t, o: t.zero_(),
    "neg_": lambda t, o: t.neg_(),
    "mask_": lambda t, o: t.masked_fill_(t > 0.5, 0.25),
    "silent": lambda t, o: _silently(t, o),
}
RESULTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda t, o: t + o,
    "product": lambda t, o: t * o,
    "choice": lambda t, o: torch.where(t > 0, t, o),
}


def _silently(t: Tensor, o: Tensor) -> None:
    with torch.no_grad():
        t.mul_(0.5).add_(o)


def interpret(steps: list[Step], x: Tensor, y: Tensor) -> Tensor:
    """Run a random program on a pool of tensors that alias one another."""
    pool = [x * 1.0, y * 1.0, torch.zeros(3, 4, **F64)]
    for kind, i, j in steps:
        t, o = pool[i % len(pool)], pool[j % len(pool)]
        if kind in VIEWS:
            pool.append(VIEWS[kind](t))
        elif kind in WRITES:
            WRITES[kind](t, o)
        else:
            pool.append(RESULTS[kind](t, o))
    return torch.stack([(p * p).sum() * (i + 1) for i, p in enumerate(pool)]).sum()


actions = st.tuples(st.sampled_from([*VIEWS, *WRITES, *WRITES, *RESULTS]), st.integers(0, 9), st.integers(0, 9))


@given(st.lists(actions, min_size=2, max_size=10), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_random_programs_of_views_and_writes(steps, with_examples):
    leaves = {"x": leaf(3, 4), "y": leaf(3, 4, seed=1)}
    try:
        autograd(interpret(steps, **leaves), leaves)
    except (RuntimeError, IndexError, UserWarning):  # shapes that do not fit, or what PyTorch itself refuses
        assume(False)
    tape, loss = recorded(lambda **given_: interpret(steps, **given_), leaves, W if with_examples else None)
    assert_sum_is_autograd(tape, loss, leaves, 1e-9)
    assert_semirings_agree(tape, loss, leaves)
    assert_paths_have_their_strength(tape.trace(loss), leaves, 1)


# ---------------------------------------------------------------- layouts

layouts = st.builds(
    lambda size, stride, offset: Layout(tuple(size), tuple(stride[: len(size)]), offset),
    st.lists(st.integers(0, 4), max_size=3),
    st.lists(st.integers(0, 7), min_size=3, max_size=3),
    st.integers(0, 20),
)


@given(layouts, layouts)
@settings(max_examples=300, deadline=None)
def test_layouts_called_disjoint_share_no_position(a, b):
    if disjoint(a, b):
        assert not set(positions(a).flatten().tolist()) & set(positions(b).flatten().tolist())


def test_slices_of_one_axis_are_recognised_as_disjoint():
    h = torch.zeros(3, 8)
    gates = [layout_of(g) for g in h.chunk(4, 1)]
    assert all(disjoint(a, b) for a in gates for b in gates if a is not b)
    assert not disjoint(gates[0], layout_of(h))


def test_later_parts_of_an_overlay_cover_earlier_ones():
    row = Layout((2, 3), (3, 1), 0)
    column = Layout((2,), (3,), 1)
    flat = overlay([torch.arange(6.0), torch.tensor([10.0, 20.0])], [row, column], 7)
    assert flat.tolist() == [0, 10, 2, 3, 20, 5, 0]


def test_a_write_forgets_the_views_it_may_have_changed():
    cell = Cell(ref=None)  # type: ignore[arg-type]
    left, right, whole = Layout((2,), (1,), 0), Layout((2,), (1,), 2), Layout((4,), (1,), 0)
    cell.write(left, "a")  # type: ignore[arg-type]
    cell.write(right, "b")  # type: ignore[arg-type]
    assert set(cell.views) == {left, right}
    cell.write(whole, "c")  # type: ignore[arg-type]
    assert set(cell.views) == {whole}
