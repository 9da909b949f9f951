"""Memory that is used again, and zeros that take none."""

from __future__ import annotations

import gc
import resource

import torch

from gradtrace.kernels.memory import LARGE, MAPPED, Room, zeros


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


def test_zeros_are_zeros_and_large_ones_take_no_memory_until_they_are_written():
    for size in (3, MAPPED):
        assert zeros(torch.float32, 2, size).shape == (2, size)
        assert not zeros(torch.float64, 2, size).any()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = zeros(torch.float32, 1 << 10, 1 << 20)  # 4 GiB
    large[5, 7] = 1.0
    assert large[5].sum() == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (1 << 17)  # in KiB
