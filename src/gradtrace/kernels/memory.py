"""Memory for large results: pages that were written before, and zeros that take none.

Pages fresh from the system have to be cleared first, which takes longer than many a kernel does; in a virtual machine,
whose system has to ask for them itself, they can be the larger part of a pass.
"""

from __future__ import annotations

import mmap
import weakref
from math import prod

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes from which memory is worth keeping
MAPPED = 1 << 25  # bytes from which an allocator would ask the system each time anyway
# of this process alone; a system without such flags gives memory of no other kind
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Room:
    """Memory for results, used again when nothing refers to it any more."""

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []

    def __call__(self, kind: torch.dtype, *shape: int) -> Tensor:
        """Make room for numbers of a shape."""
        size = kind.itemsize * prod(shape)
        if size < LARGE:
            return torch.empty(shape, dtype=kind)
        fitting = [m for m in self.free if size <= len(m) <= 2 * size]
        if fitting:
            memory = min(fitting, key=len)
            self.free.remove(memory)
        else:
            memory = _pages(size)
        view = memoryview(memory)  # lives as long as a tensor shows it
        weakref.finalize(view, self.free.append, memory).atexit = False
        return _tensor(view, kind, shape)


def zeros(kind: torch.dtype, *shape: int) -> Tensor:
    """Make zeros; many take no memory, and no time, until they are written."""
    size = kind.itemsize * prod(shape)
    return torch.zeros(shape, dtype=kind) if size < MAPPED else _tensor(memoryview(_pages(size)), kind, shape)


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, **FLAGS)


def _tensor(view: memoryview, kind: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(view, dtype=kind, count=prod(shape)).reshape(shape)
