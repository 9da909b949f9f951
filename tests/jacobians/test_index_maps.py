"""Ways back, by the definition of each: flat positions of an argument to flat positions of a result."""

from __future__ import annotations

import torch

from gradtrace.jacobians.index_maps import Affine, Composed, Raw, Reordered, Shared, Sought, Table, identity
from gradtrace.recording.layouts import contiguous

ALL = torch.arange(6)


def test_strides_of_a_contiguous_tensor():
    assert contiguous((2, 3, 4)) == (12, 4, 1)
    assert contiguous(()) == ()


def test_the_same_position():
    assert identity((2, 3)).flat(ALL, None).tolist() == ALL.tolist()
    assert not identity((2, 3)).stored
    assert identity(()).flat(torch.tensor([0]), None).tolist() == [0]


def test_strides_are_coordinates_times_steps():
    way = Affine((2, 3), (1, 2), 10)  # of a transposed 3 × 2 result, ten scalars in
    assert way.flat(ALL, None).tolist() == [10, 12, 14, 11, 13, 15]
    assert way.flat(torch.tensor([5, 0]), None).tolist() == [15, 10]


def test_the_raw_winner_is_added_in_steps_or_looked_up():
    raw = torch.tensor([0, 1, 2, 2, 1, -1], dtype=torch.int32)  # -1: a scalar without a path
    way = Affine((2, 3), (0, 1), 0, 3)
    assert way.stored
    assert way.flat(ALL, raw).tolist() == [0, 4, 8, 6, 4, 2]
    table = Affine((2, 3), (0, 1), 0, 0, lambda: torch.tensor([0, 30, 90]))
    assert table.stored
    assert table.flat(ALL, raw).tolist() == [0, 31, 92, 90, 31, 2]


def test_a_table_is_indexed_by_position():
    assert Table(lambda: torch.tensor([5, 4, 3, 2, 1, 0])).flat(torch.tensor([1, 1, 5]), None).tolist() == [4, 4, 0]


def test_rows_are_sought_among_those_read():
    way = Sought(torch.tensor([1, 2]), torch.tensor([1, 0]), 2)  # result row 1 reads row 1, row 0 reads row 2
    assert way.flat(torch.tensor([2, 3, 4, 5]), None).tolist() == [2, 3, 0, 1]
    assert way.flat(torch.tensor([7]), None).shape == (1,)  # a row that nobody reads has no path: any answer does


def test_a_row_shares_its_winner():
    assert Shared(torch.tensor([2, 3]), 3).flat(ALL, None).tolist() == [2, 2, 2, 3, 3, 3]


def test_what_is_stored_may_be_the_position():
    assert Raw().flat(ALL[:2], torch.tensor([4, 1], dtype=torch.int32)).tolist() == [4, 1]


def test_two_ways_one_after_the_other():
    halves = Affine((6,), (1,))
    inner = torch.tensor([[2, 0, 1, 1, 0, 2]], dtype=torch.int32)
    way = Composed(halves, Affine((6,), (1,), 0, 10), inner)
    assert way.flat(ALL, None).tolist() == [20, 1, 12, 13, 4, 25]
    assert not way.stored
    assert Composed(Raw(), halves, None).flat(ALL[:1], torch.tensor([3])).tolist() == [3]
    assert Composed(Raw(), halves, None).stored


def test_examples_have_winners_of_their_own_inside():
    inner = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    way = Composed(identity((2,)), Affine((2,), (1,), 0, 10), inner)
    assert [way.flat(ALL[:2], None, row).tolist() for row in (0, 1)] == [[0, 11], [10, 1]]
    around = Reordered(Composed(way, identity((12,)), None), torch.arange(12).flip(0), 1)
    assert around.flat(ALL[:2], None, 1).tolist() == [1, 10]


def test_one_plane_of_winners_inside_serves_all_examples():
    way = Composed(identity((2,)), Affine((2,), (1,), 0, 10), torch.tensor([[0, 1]], dtype=torch.int32))
    assert way.flat(ALL[:2], None, 5).tolist() == [0, 11]
