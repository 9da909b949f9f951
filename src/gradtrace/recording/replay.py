"""Run a recorded call again so that autograd can differentiate it: the one place that asks for a call's derivatives.

Always for all arguments that autograd follows, as a backward pass would, and laid out plainly: kernels are written for
what backward passes ask. PyTorch's group norm in channels-last, asked for its scale and shift without its input, ends
the process.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .record import Call


@dataclass(frozen=True, eq=False)
class Replay:
    """A call that was run again: leaves of its own, by argument position (x·x has two), and results."""

    leaves: dict[int, Tensor]
    results: list[Tensor | None]

    def gradients(self, number: int, cotangent: Tensor) -> dict[int, Tensor]:
        """Give, by argument position, Jᵀ of a result times a cotangent of its shape; may be asked again."""
        return self.vector_product([None] * number + [cotangent])

    def vector_product(self, cotangents: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """Give the same of all results together; None is a result that nothing depends on."""
        both = [(y, g) for y, g in zip(self.results, cotangents, strict=False) if y is not None and g is not None]
        ys = [y for y, _ in both if y.requires_grad]
        gs = [g.to(y.dtype).reshape(y.shape) for y, g in both if y.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(self.leaves)
        if ys:
            found = torch.autograd.grad(ys, list(self.leaves.values()), gs, retain_graph=True, allow_unused=True)
        by_position = zip(self.leaves.items(), found, strict=True)
        return {p: torch.zeros_like(x) if grad is None else solid(grad) for (p, x), grad in by_position}

    def unanswered(self) -> set[int]:
        """Give the positions of arguments for which a backward pass gives None, which is less than zeros."""
        ys = [y for y in self.results if y is not None and y.requires_grad]
        gs = [torch.ones_like(y) for y in ys]
        found = torch.autograd.grad(ys, list(self.leaves.values()), gs, retain_graph=True, allow_unused=True)
        return {p for p, grad in zip(self.leaves, found, strict=True) if grad is None}


def solid(grad: Tensor) -> Tensor:
    """Give memory to autograd's zeros, which have none, and to what is sparse."""
    if grad.layout is not torch.strided:
        return grad.to_dense()
    return grad.clone() if grad._is_zerotensor() else grad


def replay(call: Call, tensors: Sequence[Tensor] | None = None, also: Container[int] = ()) -> Replay:
    """Run a call again, whatever grad mode its caller is in.

    Args:
        tensors: the arguments; by default the recorded ones.
        also: positions to be differentiated by though autograd did not follow them.
    """
    follow = [x.value is not None and x.value.differentiable for x in call.inputs]
    with torch.inference_mode(mode=False), torch.enable_grad():
        given = [_plain(call, t) for t in ([x.tensor() for x in call.inputs] if tensors is None else tensors)]
        leaves = {p: t.requires_grad_() for p, t in enumerate(given) if follow[p] or p in also}
        return Replay(leaves, call.run(given))


def _plain(call: Call, tensor: Tensor) -> Tensor:
    """Lay an argument out contiguously, unless what the call gives depends on how it lies."""
    by_memory = call.base.startswith(("as_strided", "_reshape_alias"))
    return tensor.detach() if by_memory else tensor.detach().contiguous()
