"""Memory for large results: pages that were written before, and zeros that take none.

Pages fresh from the system have to be cleared first, which takes longer than many a kernel does; in a virtual machine,
whose system has to ask for them itself, they can be the larger part of a pass.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 19  # bytes from which memory is worth keeping
SPARE = 1 << 26  # bytes that may lie unused between a model's traces
MAPPED = 1 << 25  # bytes from which an allocator would ask the system each time anyway
# of this process alone; a system without such flags gives memory of no other kind
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


@dataclass(eq=False, slots=True)
class Block:
    """Some memory: an array of bytes."""

    size: int
    bytes: Any


class Room:
    """Memory for results, used again when nothing refers to it any more.

    Args:
        spare: bytes that may lie unused; of more, what has lain there longest is let go.
    """

    def __init__(self, spare: float = float("inf")) -> None:
        self.free: list[Block] = []
        self.spare = spare

    def __call__(self, kind: torch.dtype, *shape: int) -> Tensor:
        """Make room for numbers of a shape."""
        size = kind.itemsize * prod(shape)
        if size < LARGE:
            return torch.empty(shape, dtype=kind)
        block = self._fitting(size) or Block(size, torch.empty(size, dtype=torch.uint8, device="cpu").numpy())
        view = memoryview(block.bytes)  # lives as long as a tensor shows it
        weakref.finalize(view, _give_back, weakref.ref(self), block).atexit = False
        return _tensor(view, kind, shape)

    def _fitting(self, size: int) -> Block | None:
        """Take the smallest block that does, if it is not much too large."""
        fitting = [b for b in self.free if size <= b.size <= 2 * size]
        if not fitting:
            return None
        found = min(fitting, key=lambda b: b.size)
        try:
            self.free.remove(found)
        except ValueError:  # it has gone meanwhile: to another thread, or as too much
            return None
        return found

    def take_back(self, block: Block) -> None:
        """Keep a block for later results."""
        self.free.append(block)
        while sum([b.size for b in self.free]) > self.spare:
            self.free.pop(0)


def _give_back(room: weakref.ref[Room], block: Block) -> None:
    found = room()
    if found is not None:
        found.take_back(block)


_ROOMS: weakref.WeakKeyDictionary[Any, Room] = weakref.WeakKeyDictionary()
_CURRENT: ContextVar[Callable[..., Tensor] | None] = ContextVar("room", default=None)


def room_of(model: Any) -> Room:
    """Give the room of a model, which goes with it; one of its own to a recording without a model."""
    return Room(SPARE) if model is None else _ROOMS.setdefault(model, Room(SPARE))


@contextmanager
def within(room: Callable[..., Tensor] | None) -> Iterator[None]:
    """Let `empty` use a room inside the block."""
    token = _CURRENT.set(room)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def empty(kind: torch.dtype, *shape: int) -> Tensor:
    """Make room for numbers of a shape."""
    room = _CURRENT.get()
    return torch.empty(shape, dtype=kind) if room is None else room(kind, *shape)


def copied(t: Tensor) -> Tensor:
    """Copy a tensor, laid out without gaps."""
    return empty(t.dtype, *t.shape).copy_(t)


def zeros(kind: torch.dtype, *shape: int) -> Tensor:
    """Make zeros; many take no memory, and no time, until they are written."""
    size = kind.itemsize * prod(shape)
    if size >= MAPPED:
        return _tensor(memoryview(_pages(size)), kind, shape)
    return torch.zeros(shape, dtype=kind) if size < LARGE else empty(kind, *shape).zero_()


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, **FLAGS)


def _tensor(view: memoryview, kind: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(view, dtype=kind, count=prod(shape)).reshape(shape)
