"""Collectives in the backward pass of a custom function, worked out by one rank alone.

A trace follows this rank's own loss, which a collective makes depend on this rank's own numbers, and on others'. What
its derivative hands back to this rank's numbers is what its backward pass would if all other ranks' cotangents were 0:
so that is what collectives do here, and no rank waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Unsupported

SPACES = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional"}


def alone(what: str) -> AbstractContextManager[Any]:
    """Let collectives run inside the block as if all other ranks had given zeros.

    Args:
        what: whose collectives they are.

    Raises:
        Unsupported: there is one of which that is not known, or that does not add up.
    """
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return _Alone(what) if there else nullcontext()


class _Alone(TorchDispatchMode):
    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        del types
        if func.namespace not in SPACES:
            return func(*args, **(kwargs or {}))
        act = _ALONE.get(func._schema.name.split("::")[-1])
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        if act is None or not _is_sum(given.get("reduce_op", "sum")):
            raise Unsupported(
                f"{self._what} exchanges numbers with other ranks by {func}, and how one rank's own would go on is not "
                "known: collectives that gather, scatter and add are"
            )
        return act(*args)


def _is_sum(reduction: Any) -> bool:
    """Tell whether a collective adds up, by the name or the object that says what it does."""
    if isinstance(reduction, str):
        return reduction.lower() == "sum"
    return reduction.op() == torch.distributed.ReduceOp.SUM


def _done() -> Any:
    """Give what stands for work that has been done."""
    from torch._C._distributed_c10d import FakeWork, Work

    return Work.boxed(FakeWork())


def _rank(group: Any) -> int:
    """Give this rank's number in a group, by its name or as operators are given it."""
    if isinstance(group, str):
        from torch.distributed import distributed_c10d

        group = distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]
    return (group if hasattr(group, "rank") else torch.distributed.ProcessGroup.unbox(group)).rank()


def _all_reduce_here(tensors: Sequence[Tensor], *rest: Any) -> Any:
    return tensors, _done()


def _scatter_here(outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], group: Any, root: int, *_: Any) -> Any:
    own = _rank(group)
    outputs[0].zero_() if root != own else outputs[0].copy_(inputs[0][own])
    return outputs, _done()


def _reduce_scatter_here(outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], group: Any, *rest: Any) -> Any:
    outputs[0].copy_(inputs[0][_rank(group)])
    return outputs, _done()


def _reduce_scatter_base_here(output: Tensor, given: Tensor, group: Any, *rest: Any) -> Any:
    output.copy_(given.reshape(-1, *output.shape)[_rank(group)])
    return output, _done()


def _all_to_all_here(outputs: Sequence[Tensor], inputs: Sequence[Tensor], group: Any, *rest: Any) -> Any:
    own = _rank(group)
    for number, output in enumerate(outputs):
        output.zero_() if number != own else output.copy_(inputs[own])
    return outputs, _done()


def _gathered(given: Tensor, size: int, group: Any) -> Tensor:
    parts = [torch.zeros_like(given)] * size
    parts[_rank(group)] = given
    return torch.cat(parts)


def _exchanged(given: Tensor, sizes: Sequence[int], own_sizes: Sequence[int], group: Any) -> Tensor:
    own = _rank(group)
    parts = [given.new_zeros((size, *given.shape[1:])) for size in sizes]
    parts[own] = given.split(list(own_sizes))[own]
    return torch.cat(parts)


_ALONE: Mapping[str, Callable[..., Any]] = {
    "allreduce_": _all_reduce_here,
    "scatter_": _scatter_here,
    "reduce_scatter_": _reduce_scatter_here,
    "_reduce_scatter_base_": _reduce_scatter_base_here,
    "alltoall_": _all_to_all_here,
    "all_reduce": lambda given, *rest: given.clone(),
    "all_gather_into_tensor": _gathered,
    "reduce_scatter_tensor": lambda given, reduction, size, group: given.chunk(size)[_rank(group)].clone(),
    "all_to_all_single": _exchanged,
    "wait_tensor": lambda given: given,
}
