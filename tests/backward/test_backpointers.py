"""Winners of one value, kept small, against what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradtrace.backward.backpointers import Borrowed, Use, Winners, pick
from gradtrace.jacobians.index_maps import Affine, identity
from gradtrace.recording.layouts import Layout
from gradtrace.recording.record import Record, Value

SHAPE = (2, 3)
ALL = torch.arange(6)


@pytest.fixture
def target() -> Value:
    return Record().value(torch.zeros(SHAPE))


def edges(target: Value, *firsts: int) -> list[Use]:
    return [Use(first, target, identity(SHAPE)) for first in firsts]


def test_one_edge_needs_no_choice(target):
    winners = Winners(SHAPE, edges(target, 100))
    assert winners.at(0, ALL)[0].tolist() == [0] * 6
    assert winners.at(0, ALL)[1] is None
    assert winners.pointers(0, ALL).tolist() == list(range(100, 106))


def test_choices_by_example(target):
    choice = torch.tensor([[[0, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]], dtype=torch.uint8)
    winners = Winners(SHAPE, edges(target, 100, 200), choice)
    assert winners.pointers(0, ALL).tolist() == [100, 201, 102, 103, 104, 205]
    assert winners.pointers(1, ALL).tolist() == [200, 201, 202, 103, 104, 105]
    assert winners.pointers(1, torch.tensor([3, 0])).tolist() == [103, 200]


def test_one_plane_of_choices_serves_all_examples(target):
    winners = Winners(SHAPE, edges(target, 100, 200), torch.ones((1, *SHAPE), dtype=torch.uint8))
    assert winners.pointers(3, ALL[:2]).tolist() == [200, 201]


@pytest.mark.parametrize("before", [True, False])
def test_windows_say_who_was_chosen(target, before):
    windows = [Layout((2, 2), (3, 1), 1), Layout((2,), (3,), 0)]  # the last two columns, the first one
    winners = Winners(SHAPE, edges(target, 100, 200), windows=windows)
    if before:
        winners.settle()
        assert winners.windows is None
    assert winners.pointers(0, ALL).tolist() == [200, 101, 102, 203, 104, 105]
    assert winners.choice is not None
    assert winners.choice.dtype is torch.uint8
    assert winners.planes()[0] is winners.choice


def _several(target: Value, index: Tensor, first: int = 2, second: int = 1) -> Winners:
    """Two products in one: numbers 0 to first - 1 are the second edge's, the rest the first one's."""
    ordinal = torch.tensor([1] * first + [0] * second)
    local = torch.cat([torch.arange(first), torch.arange(second)])
    way = Affine(SHAPE, (0, 1), 0, 10)
    return Winners(SHAPE, [Use(n, target, way) for n in (100, 200)], index=index, terms=(ordinal, local))


@pytest.mark.parametrize("before", [True, False])
def test_terms_tell_whose_number_is_stored(target, before):
    index = torch.tensor([[[0, 1, 2], [2, 1, 0]]], dtype=torch.int32)
    winners = _several(target, index)
    if before:
        winners.settle()
        assert winners.terms is None
        assert winners.choice is not None
        assert winners.choice.tolist() == [[[1, 1, 0], [0, 1, 1]]]
    assert winners.pointers(0, ALL).tolist() == [200, 211, 102, 100, 211, 202]


def test_terms_of_a_turned_product_settle_as_they_lie(target):
    index = torch.tensor([[[0, 2], [1, 1], [2, 0]]], dtype=torch.int32).transpose(1, 2)
    expected = _several(target, index).pointers(0, ALL).tolist()
    winners = _several(target, index)
    winners.settle()
    assert winners.pointers(0, ALL).tolist() == expected


def test_more_than_256_edges_take_wider_choices(target):
    many = edges(target, *range(1000, 1300))
    ordinal = torch.arange(300)
    index = torch.tensor([[[0, 255, 256], [299, 1, -1]]], dtype=torch.int32)
    winners = Winners(SHAPE, many, index=index, terms=(ordinal, torch.zeros_like(ordinal)))
    winners.settle()
    assert winners.choice is not None
    assert winners.choice.dtype is torch.int32
    assert winners.choice.tolist() == [[[0, 255, 256], [299, 1, 0]]]


def test_an_edge_that_told_examples_apart_reads_its_own(target):
    way = Affine((2, 6), (6, 1))  # the result's rows: example, scalar
    winners = Winners(SHAPE, [Use(100, target, way, split=True)])
    assert winners.pointers(1, ALL[:2]).tolist() == [106, 107]


def test_winners_borrowed_from_where_the_product_went(target):
    choice = torch.tensor([[[0, 1], [0, 0], [1, 0]]], dtype=torch.uint8)
    index = torch.arange(6, dtype=torch.int32).reshape(1, 3, 2)
    lender = Winners((3, 2), edges(target, 100, 200), choice, index)
    unused = Borrowed(SHAPE, [Use(300, target, Affine(SHAPE, (0, 0), 0, 1))])
    unused.borrow(lender, 0, (1, 0))  # position (i, j) here is (j, i) there
    assert [unused.knows(0, p) for p in range(6)] == [True, True, False, False, True, True]
    assert unused.pointers(0, ALL).tolist() == [300, 302, 304, 301, 303, 305]


@pytest.mark.parametrize("positions", [[5], [0, 1, 2, 3, 4, 5], [3, 3]])
def test_reading_some_scalars_of_a_plane(positions):
    plane = torch.arange(12).reshape(2, 3, 2).transpose(1, 2)
    at = torch.tensor(positions)
    assert torch.equal(pick(plane, 1, at, SHAPE), plane[1].flatten()[at])
    assert torch.equal(pick(plane[:1], 1, at, SHAPE), plane[0].flatten()[at])
    assert pick(torch.tensor([7]), 0, torch.tensor([0]), ()).tolist() == [7]
