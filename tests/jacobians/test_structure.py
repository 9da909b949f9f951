"""Structures: the helpers that rules build them with. What a semiring does to them is in kernels/test_reference.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.jacobians.structure import (
    Chain,
    Contraction,
    Gather,
    LowRank,
    Strided,
    dense,
    diagonal,
    letters,
    reduction,
    result_shape,
    sparse,
)
from gradtrace.recording.layouts import Layout, positions


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=3),
    st.integers(0, 5),
)
def test_positions_are_where_as_strided_reads(axes, offset):
    layout = Layout(tuple(n for n, _ in axes), tuple(s for _, s in axes), offset)
    memory = torch.arange(100)
    assert torch.equal(positions(layout), memory.as_strided(layout.size, layout.stride, offset))


@pytest.mark.parametrize(
    ("y", "x", "letters_of_x", "kept"),
    [((5, 3), (3,), "b", (3,)), ((5, 3), (5, 1), "a", (5,)), ((5, 3), (), "", ()), ((1, 3), (1, 3), "ab", (1, 3))],
)
def test_a_diagonal_drops_the_axes_along_which_x_was_broadcast(y, x, letters_of_x, kept):
    s = diagonal(y, x, None)
    assert (s.y, s.x, s.x_shape, s.w) == ("ab", letters_of_x, kept, "")
    assert diagonal(y, x, lambda: torch.ones(y)).w == "ab"


def test_a_reduction_keeps_the_letters_of_the_axes_that_stay():
    s = reduction((2, 3, 4), (0, 2), None)
    assert (s.y, s.x, s.y_shape, s.x_shape, s.w) == ("b", "abc", (3,), (2, 3, 4), "")


def test_a_dense_jacobian_shares_no_letter():
    s = dense(6, 4, lambda: torch.ones(6, 4))
    assert (s.y, s.x, s.w, s.y_shape, s.x_shape) == ("a", "b", "ab", (6,), (4,))


def test_duplicate_edges_are_merged_into_one_path():
    i, j = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    rows, columns, w = sparse(lambda: (i, j, torch.tensor([2.0, 3.0, 5.0, 7.0])), (1, 2, 1), (1, 2, 1)).edges()
    assert w is not None
    found = {(a, b): v for a, b, v in zip(rows.tolist(), columns.tolist(), w.tolist(), strict=True)}
    assert found == {(0, 1): 7.0, (1, 0): 3.0, (0, 0): 7.0}


def test_edges_without_weights_count_how_often_they_occur():
    i = torch.tensor([1, 1, 0])
    rows, _, w = sparse(lambda: (i, i, None), (1, 2, 1), (1, 2, 1)).edges()
    assert w is not None
    assert dict(zip(rows.tolist(), w.tolist(), strict=True)) == {0: 1.0, 1: 2.0}


def test_the_shape_of_a_result_is_that_of_the_first_structure_of_a_chain():
    gather = Gather(lambda: torch.zeros(4), (2, 2), (3,))
    low = LowRank((5, 2), (1,), lambda: (torch.ones(1), (), ()))
    strided = Strided(Layout((7,), (1,), 0), (9,))
    assert [result_shape(s) for s in (gather, low, strided, Chain(strided, gather))] == [(2, 2), (5, 2), (7,), (7,)]
    assert result_shape(diagonal((3, 1), (3, 1), None)) == (3, 1)


def test_weights_are_not_taken_until_they_are_asked_for():
    def never() -> torch.Tensor:
        raise AssertionError("too early")

    assert isinstance(diagonal((2,), (2,), never), Contraction)
    reduction((2,), (0,), never)
    dense(2, 2, never)
    sparse(never, (1, 1, 1), (1, 1, 1))  # type: ignore[arg-type]


def test_an_axis_has_a_letter():
    assert letters(0) == ""
    assert letters(3) == "abc"
    assert len(set(letters(52))) == 52
