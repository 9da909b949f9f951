"""What the oracle itself rests on: its sums are the gradients of PyTorch."""

from __future__ import annotations

import torch
from fuzz.oracle import Oracle
from fuzz.program import Program
from torch import Tensor

NEAR = 1e-9
NOISE = 1e-3  # what cancels leaves noise of the numbers that went into it, which may be larger than what came out


def near(have: Tensor | None, vertices: list[int], want: dict[int, float], flow: dict[int, float], what: str) -> None:
    """Compare numbers of some vertices, whose rounding is that of their absolute sums; None stands for zeros."""
    wanted = torch.tensor([want.get(v, 0.0) for v in vertices], dtype=torch.float64)
    have = torch.zeros_like(wanted) if have is None else have.detach().flatten()
    scale = torch.tensor([flow.get(v, 0.0) for v in vertices], dtype=torch.float64)
    off = (have - wanted).abs() > NEAR * scale.clamp(min=NOISE * max(flow.values()))
    assert not off.any(), f"{what} is {have.tolist()} and should be {wanted.tolist()}"


def root_of(program: Program, oracle: Oracle) -> int | None:
    """Give the loss's vertex; None if autograd does not follow it."""
    return oracle.read(oracle.env[program.loss.parts[-1].outs[0]])[0]


def sums_are_autograds(program: Program, oracle: Oracle, root: int) -> None:
    """Compare sums over the scalar graph with one ordinary backward pass.

    Raises:
        AssertionError: the oracle is wrong. This is not about gradtrace.
    """
    space = program.start()
    program.run(space)
    found = torch.autograd.grad(space["loss"], [space[n] for n in oracle.leaves], allow_unused=True)
    g, flow = oracle.graph.sums(root), oracle.graph.absolute(root)
    for (name, vertices), grad in zip(oracle.leaves.items(), found, strict=True):
        near(grad, vertices, g, flow, f"autograd's gradient of {name}")
