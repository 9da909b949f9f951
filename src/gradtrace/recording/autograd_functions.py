"""Custom autograd.Functions: one operator each, whose Jacobian is what its own backward says.

The tape cannot see inside a custom function (its forward runs without grad). It meets the function when its
result is first used, and asks the result's autograd node for derivatives, as `loss.backward()` would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]

from ..errors import Unsupported
from .collectives import alone

CustomNode = torch.autograd.function.BackwardCFunction


class _Replay(torch.autograd.Function):
    """Give recorded results forward, and call a recorded node backward."""

    @staticmethod
    def forward(ctx: Any, node: Any, results: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.node, ctx.followed = node, len(tensors)
        return tuple(r.clone() for r in results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if any(g is not None and _functorch.is_legacy_batchedtensor(g) for g in grads):
            raise RuntimeError("a user's backward is called with one gradient at a time")
        try:
            there = [m.device for m in ctx.node._input_metadata]
            moved = (g if g is None else g.to(at) for g, at in zip(grads, there, strict=True))
            with alone(f"the backward of the custom autograd.Function {name_of(ctx.node)!r}"):
                found = ctx.node.apply(*moved)  # what the engine calls; hooks are not run
        except RuntimeError as error:
            freed = "second time" in str(error)
            why = (
                "loss.backward() freed what it saved. Ask before that, or give it retain_graph=True" if freed else error
            )
            raise Unsupported(
                f"the backward of the custom autograd.Function {name_of(ctx.node)!r} cannot be run again: {why}"
            ) from None
        found = found if isinstance(found, tuple) else (found,)
        found = [g.cpu() if isinstance(g, Tensor) else g for g in found]
        ways, needed = ctx.node.next_functions, ctx.node.needs_input_grad
        if len(ways) == len(needed):  # else some arguments are no tensors
            needed = [way is not None for way, _ in ways]
        followed = [g for g, asked in zip(found, needed, strict=False) if asked]
        if len(followed) != ctx.followed:
            raise Unsupported(
                f"an argument of the custom autograd.Function {name_of(ctx.node)!r} says that it requires grad, and is "
                "a view made under no_grad, which autograd does not follow: detach() it first"
            )
        return None, None, *followed


def name_of(node: Any) -> str:
    """Give the name of the function that a node belongs to."""
    return type(node).__name__.removesuffix("Backward")


def generated_name(op: Any) -> str:
    """Give the name of the function that PyTorch makes for an operator with `torch.library.register_autograd`."""
    name, overload = op._schema.name.replace("::", "_"), op._schema.overload_name or "default"
    return f"GeneratedBackwardFor_{name}_{overload}"


def refuse_reentrant(node: Any) -> None:
    """Refuse reentrant checkpointing, which accumulates into .grad as it goes.

    Raises:
        Unsupported: says what to use instead.
    """
    if name_of(node) == "CheckpointFunction":
        raise Unsupported("reentrant checkpointing hides its operators: use checkpoint(…, use_reentrant=False)")


class CustomFunction:
    """Stands as the operator of a call; the same tensors in give the same results and derivatives.

    Args:
        node: the autograd node of one of the function's results.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.results = [torch.zeros(tuple(m.shape), dtype=m.dtype) for m in node._input_metadata]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _Replay.apply(self.node, self.results, *tensors)  # type: ignore[return-value]
