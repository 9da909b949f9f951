"""Memory that is used again, and zeros that take none."""

from __future__ import annotations

import gc
import resource
import weakref

import pytest
import torch
from torch import nn

from gradtrace import record
from gradtrace.kernels import native
from gradtrace.kernels.memory import LARGE, MAPPED, SPARE, Room, copied, empty, room_of, within, zeros


def test_room_is_used_again_when_nobody_refers_to_it():
    room = Room()
    a = room(torch.float32, LARGE).fill_(1.0)
    where, view = a.data_ptr(), a[5:]
    del a
    gc.collect()
    other = room(torch.float32, LARGE)
    assert other.data_ptr() != where
    del view
    gc.collect()
    assert room(torch.float64, LARGE // 2 - 3).data_ptr() == where
    assert len(room(torch.float32, 3)) == 3


def test_a_room_keeps_no_more_than_it_may():
    room = Room(3 * LARGE)
    a, b, c = (room(torch.uint8, LARGE * n) for n in (1, 2, 4))
    del a, b, c
    gc.collect()
    assert [block.size for block in room.free] == []  # the last one alone is too much, and the first ones went for it
    d = room(torch.uint8, 2 * LARGE)
    del d
    assert [block.size for block in room.free] == [2 * LARGE]


def test_memory_outlives_its_room():
    room = Room()
    a = room(torch.float32, LARGE).fill_(3.0)
    del room
    gc.collect()
    assert (a == 3.0).all()


def test_inside_a_room_results_are_put_there():
    room = Room()
    with within(room):
        where = empty(torch.float32, LARGE).data_ptr()
        gc.collect()
        again = copied(torch.ones(2, LARGE // 2).T)
        assert again.data_ptr() == where
        assert again.is_contiguous()
        assert again.eq(1).all()
        del again
        assert not zeros(torch.float32, LARGE).any()
    assert len(room.free) == 1
    assert empty(torch.float32, LARGE).data_ptr() != where


def test_a_room_goes_with_its_model():
    model = nn.Linear(2, 3)
    room = room_of(model)
    assert room_of(model) is room
    assert room.spare == SPARE
    assert room_of(None) is not room_of(None)
    gone = weakref.ref(room)
    del model, room
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not native.available(), reason="the reference has no use for a room")
def test_what_one_trace_gave_stays_when_the_next_one_runs():
    torch.manual_seed(0)
    model, x = nn.Linear(600, 600), torch.randn(300, 600)

    def trace():
        with record(model) as tape:
            loss = model(x).relu().square().sum()
        return tape.trace(loss)

    first = trace()
    before = {name: found.clone() for name, found in first.strength.items()}
    path = first.path("weight", (3, 4))
    x = torch.randn(300, 600)
    second = trace()
    assert all(torch.equal(first.strength[name], found) for name, found in before.items())
    assert first.path("weight", (3, 4)) == path
    assert not torch.equal(second.strength["weight"], before["weight"])


def test_zeros_are_zeros_and_large_ones_take_no_memory_until_they_are_written():
    for size in (3, MAPPED):
        assert zeros(torch.float32, 2, size).shape == (2, size)
        assert not zeros(torch.float64, 2, size).any()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = zeros(torch.float32, 1 << 10, 1 << 20)  # 4 GiB
    large[5, 7] = 1.0
    assert large[5].sum() == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (1 << 17)  # in KiB
