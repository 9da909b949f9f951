"""A neural queue and a neural stack: exactly Python's where their controls are 0 or 1, and at a corner there.

Grefenstette and others' memories keep every value ever pushed, with a strength: pushing gives one, popping takes it
from the front of a queue or the top of a stack, reading averages what the first unit of strength has. With controls of
0 and 1 they are `collections.deque` and a list. What the trace shows: what is read is owed to the value pushed, however
long it waited, and to no other. But at 0 and 1 all minima are ties: what comes back to the controls is the slope of
neither side, while at softer controls it is that of both.

    python examples/neural_queue.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections import deque

import torch
from torch import Tensor

import gradtrace
from gradtrace import Max
from gradtrace.scalar import Graph, backpropagate, draw


def run(values: Tensor, pushes: Tensor, pops: Tensor, kind: str) -> list[Tensor]:
    """Give what is read after each step: pop, push, read. A queue is served in order, a stack from the end."""
    strengths: list[Tensor] = []
    reads = []
    for t in range(len(values)):
        left = pops[t]
        order = range(t) if kind == "queue" else reversed(range(t))
        for i in order:
            taken = torch.minimum(strengths[i], left.clamp(min=0))
            strengths[i], left = strengths[i] - taken, left - taken
        strengths.append(pushes[t])
        room, read = torch.ones(()).double(), torch.zeros_like(values[0])
        for i in range(t + 1) if kind == "queue" else reversed(range(t + 1)):
            share = torch.minimum(strengths[i], room.clamp(min=0))
            read, room = read + share * values[i], room - strengths[i]
        reads.append(read)
    return reads


def by_python(values: Tensor, pushes: list[float], pops: list[float], kind: str) -> list[Tensor]:
    """Do the same with a deque."""
    held: deque[Tensor] = deque()
    reads = []
    for value, push, pop in zip(values, pushes, pops, strict=True):
        if pop and held:
            held.popleft() if kind == "queue" else held.pop()
        if push:
            held.append(value)
        reads.append((held[0] if kind == "queue" else held[-1]) if held else torch.zeros_like(value))
    return reads


def slopes(values: Tensor, pushes: Tensor, pops: Tensor) -> tuple[float, float, float]:
    """Give how the read at step 4 changes with the first push: to the left, to the right, and by the gradient."""

    def read(change: float) -> float:
        return run(values, pushes + torch.eye(8, dtype=pushes.dtype)[0] * change, pops, "queue")[4].sum().item()

    leaf, h = pushes.clone().requires_grad_(), 1e-6
    with gradtrace.record(names={"pushes": leaf}) as tape:
        loss = run(values, leaf, pops, "queue")[4].sum()
    (g,) = tape.grad(loss, "pushes")
    return (read(0) - read(-h)) / h, (read(h) - read(0)) / h, g[0].item()


def main(picture: str | None = None) -> None:
    """Compare with Python, trace a value through the queue, and look at the corners."""
    random = torch.Generator().manual_seed(0)
    for kind in ("queue", "stack"):
        for _ in range(20):
            values = torch.randn(8, 2, generator=random, dtype=torch.float64)
            pushes, pops = (torch.randint(2, (8,), generator=random).double() for _ in range(2))
            expected = by_python(values, pushes.tolist(), pops.tolist(), kind)
            found = run(values, pushes, pops, kind)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        print(f"a neural {kind} with controls of 0 and 1 is Python's, on 20 random programs")

    values = torch.randn(8, 2, generator=random, dtype=torch.float64).requires_grad_()
    pushes = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)  # four in, then four out
    pops = torch.tensor([0.0] * 4 + [0.0, 1, 1, 1], dtype=torch.float64)
    with gradtrace.record(names={"values": values}) as tape:
        reads = [read.sum() for read in run(values, pushes, pops, "queue")]
    for first in range(4):
        (size,) = tape.grad(reads[4 + first], "values", Max)
        assert size.nonzero()[:, 0].unique().tolist() == [first]
    print("what was pushed at step 0, 1, 2, 3 is read at step 4, 5, 6, 7: each read has paths from one value alone")

    given = values.detach()
    (left, right, g), soft = slopes(given, pushes, pops), slopes(given, 0.8 * pushes + 0.1, 0.8 * pops + 0.1)
    assert min(abs(g - left), abs(g - right), abs(g - (left + right) / 2)) > 0.01
    assert torch.allclose(torch.tensor(soft), torch.tensor(soft[2]), atol=1e-6)
    print(f"the first push, at 1: slope {left:.3f} to the left, {right:.3f} to the right, gradient {g:.3f}")
    print("the first push, at 0.9: slope {:.3f} to the left, {:.3f} to the right, gradient {:.3f}".format(*soft))
    if picture:
        g = Graph()
        g.inputs(a=2.0, b=5.0)
        g.parameters(push_a=0.9, push_b=0.8)
        g.add("share_a", lambda s: s.clamp(max=1), "push_a")
        g.add("share_b", lambda s, a: torch.minimum(s, 1 - a), "push_b", "push_a")
        g.add("read", lambda x, a, y, b: x * a + y * b, "share_a", "a", "share_b", "b")
        draw(g, picture, notes=backpropagate(g, "read"), title="Reading a queue of two: 0.9 of a, and 0.1 of b")


if __name__ == "__main__":
    main(*sys.argv[1:])
