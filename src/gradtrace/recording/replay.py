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
        y = self.results[number]
        assert y is not None
        found: Sequence[Tensor | None] = [None] * len(self.leaves)
        if y.requires_grad:
            inputs = list(self.leaves.values())
            found = torch.autograd.grad(y, inputs, cotangent, retain_graph=True, allow_unused=True)
        both = zip(self.leaves.items(), found, strict=True)
        return {p: torch.zeros_like(x) if grad is None else solid(grad) for (p, x), grad in both}


def solid(grad: Tensor) -> Tensor:
    """Give autograd's zeros, which have no memory, some."""
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
