"""Single entries and columns of structures, against their whole Jacobians written out as loops from the definitions."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from checks import leaf, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_jacobians import LAYOUTS, contractions, integers, jacobian, low_rank_factors, seeds

from gradtrace.jacobians.rules import structures
from gradtrace.jacobians.rules.dense import whole
from gradtrace.jacobians.structure import Chain, Gather, LowRank, Placed, Scatter, Sparse, Strided, Structure, diagonal
from gradtrace.kernels import entry
from gradtrace.kernels.column import columns
from gradtrace.kernels.entry import entries
from gradtrace.recording.layouts import Layout


def read(s: Structure, y_numel: int, x_numel: int) -> list[list[float]]:
    """Write a Jacobian out column by column."""
    out = np.zeros((y_numel, x_numel))
    column = columns(s)
    for x in range(x_numel):
        places, weights = column(x)
        assert (np.diff(places) > 0).all()  # rising, none twice
        out[places, x] = 1.0 if weights is None else weights
    return out.tolist()


def check(s: Structure, y_numel: int, x_numel: int) -> None:
    j = jacobian(s)
    y, x = (at.flatten() for at in np.indices((y_numel, x_numel)))
    assert entries(s, y, x).tolist() == [j.get(at, 0.0) for at in zip(y.tolist(), x.tolist(), strict=True)]
    assert read(s, y_numel, x_numel) == [[j.get((y, x), 0.0) for x in range(x_numel)] for y in range(y_numel)]


def row(s: Structure, y: int, x_numel: int) -> list[float]:
    return entries(s, np.full(x_numel, y), np.arange(x_numel)).tolist()


@given(contractions())
@settings(deadline=None)
def test_contractions(s):
    check(s, prod(s.y_shape), prod(s.x_shape))


@pytest.mark.parametrize("name", LAYOUTS)
def test_views(name):
    layout = LAYOUTS[name]
    check(Strided(layout, (3, 4)), prod(layout.size), 12)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("expanded", "repeated-and-kept", "overlapping")])
def test_copies_into_a_part_of_which_some_is_written_over(name):
    one, two = (Layout((4,), (1,), 4),), (Layout((3,), (4,), 2), Layout((), (), 0))
    nothing, interleaved = (Layout((0,), (1,), 0),), (Layout((2, 3), (3, 2), 0),)
    for hidden in ((), one, two, nothing, interleaved):
        check(Placed(LAYOUTS[name], (3, 4), hidden), 12, prod(LAYOUTS[name].size))


@given(st.lists(st.integers(-1, 5), min_size=8, max_size=8))
@settings(deadline=None)
def test_gathers(index):
    check(Gather(lambda: torch.tensor(index).reshape(2, 4), (2, 4), (3, 2)), 8, 6)
    check(Gather(lambda: torch.tensor(index), (8, 3), (6, 3), 3), 24, 18)


@given(st.permutations(range(-2, 6)))
@settings(deadline=None)
def test_scatters(index):
    check(Scatter(lambda: torch.tensor(index).clamp(min=-1).reshape(4, 2), (2, 3), (4, 2)), 6, 8)


@given(
    st.sampled_from([((3,), (0,)), ((2, 3), (1,)), ((2, 3), (0,)), ((2, 2, 3), (0, 2)), ((2, 3), (1, 0)), ((), ())]),
    st.integers(1, 3),
    seeds,
)
@settings(deadline=None, max_examples=40)
def test_rows_of_low_rank(where, rank, seed):
    shape, dims = where
    factors = low_rank_factors(shape, rank, seed)
    check(LowRank(shape, dims, lambda: factors), prod(shape), prod(shape))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=8, unique=True), st.booleans(), seeds)
@settings(deadline=None, max_examples=40)
def test_lists_of_edges(pairs, weighted, seed):
    i, j = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in range(2))
    w = integers((len(pairs),), seed) if weighted else None
    check(Sparse(lambda: (i, j, w), (2, 4, 2), (2, 3, 2)), 16, 12)


def test_one_structure_after_another():
    gather = Gather(lambda: torch.tensor([2, 0, -1, 2]), (4,), (3,))
    scale = diagonal((4,), (4,), lambda: torch.tensor([2.0, 0.0, 5.0, -3.0], dtype=torch.float64))
    check(Chain(scale, gather), 4, 3)
    check(Chain(Strided(Layout((2, 2), (1, 2), 0), (4,)), gather), 4, 3)
    check(Chain(gather, diagonal((3,), (3,), lambda: torch.tensor([2.0, 7.0, -1.0], dtype=torch.float64))), 4, 3)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=8, unique=True), st.booleans(), seeds)
@settings(deadline=None, max_examples=40)
def test_one_axis_after_another(pairs, weighted, seed):
    """As interpolations are: each virtual scalar is on one way."""

    def along(before: int, after: int, m: int, n: int) -> Sparse:
        i, j = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in range(2))
        w = integers((len(pairs),), seed) if weighted else None
        return Sparse(lambda: (i, j, w), (before, m, after), (before, n, after))

    rows, columns_ = along(2, 4, 3, 4), along(6, 1, 3, 4)
    check(Chain(columns_, rows), 18, 32)
    check(Chain(Chain(diagonal((18,), (18,), lambda: integers((18,), seed)), columns_), rows), 18, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "MIDDLES", 3)
        check(Chain(columns_, rows), 18, 32)


@given(
    st.fixed_dictionaries(
        {
            "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "padding": st.tuples(st.integers(0, 2), st.integers(0, 1)),
            "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "groups": st.sampled_from([1, 2]),
        }
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_convolutions_whichever_way_they_go(sizes, transposed):
    """Against autograd, since the loops know no transposed ones."""
    x, w = leaf(2, 2, 5, 4), leaf(2, 2, 2, 2) if transposed else leaf(2, 2 // sizes["groups"], 2, 2)
    run = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    tape, _ = recorded(lambda x, w: run(x, w, **sizes).sum(), {"x": x, "w": w})
    call = next(c for c in tape.calls if c.base == "convolution")
    whole = torch.autograd.functional.jacobian(lambda x, w: run(x, w, **sizes), (x, w))
    for position, _, s in structures(call):
        j = whole[position].reshape(-1, (x, w)[position].numel())
        for y in range(0, len(j), 7):
            assert row(s, y, j.shape[1]) == pytest.approx(j[y].tolist(), abs=1e-12)
        found = torch.tensor(read(s, *j.shape), dtype=torch.float64)
        assert torch.allclose(found, j, rtol=1e-12, atol=1e-12)


def test_parts_written_over_at_places_that_interleave():
    check(Placed(Layout((12,), (1,), 0), (3, 4), (Layout((2, 3), (3, 2), 0),)), 12, 12)


def test_of_a_jacobian_that_is_written_out_one_row_is_enough():
    x = leaf(3, 3)
    tape, _ = recorded(lambda x: torch.linalg.matrix_exp(x).sum(), {"x": x})
    _, _, s = whole(tape.calls[0], 0, 0)
    j = torch.autograd.functional.jacobian(torch.linalg.matrix_exp, x).reshape(9, 9)
    assert row(s, 4, 9) == pytest.approx(j[4].tolist(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_has_the_numbers_that_single_entries_have(dtype):
    """Of a norm too, whose edges are worked out of several factors."""
    h, w = leaf(3, 5).detach().to(dtype).requires_grad_(), leaf(5, 5).detach().to(dtype).requires_grad_()
    tape, _ = recorded(lambda h, w: torch.nn.functional.layer_norm(h @ w, (5,), w[0]).tanh().sum(), {"h": h, "w": w})
    for call in tape.calls:
        for position, output, s in structures(call):
            made, given_ = call.outputs[output], call.inputs[position].value
            if made is not None and given_ is not None:
                found = read(s, made.numel, given_.numel)
                at = np.divmod(np.arange(made.numel * given_.numel), max(1, given_.numel))
                assert found == entries(s, *at).reshape(made.numel, given_.numel).tolist()


def test_something_else_is_no_structure():
    with pytest.raises(TypeError, match="not a structure"):
        entries(object(), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(TypeError, match="not a structure"):
        columns(object())
