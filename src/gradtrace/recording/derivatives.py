"""Autograd's own derivatives of one operator call, which is run again on leaves of its own.

Nothing here knows gradtrace's rules: it is what they are compared with, and what the explicit scalar graph is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from contextlib import suppress
from itertools import product

import torch
from torch import Tensor

from ..errors import BadArgument
from .record import Call, Input, Value

PROBES = (1.0, 1.0, 0.3, 0.3, 0.1, 0.1)  # sizes of other numbers, at which a derivative of 0 is looked at once more
Jacobians = dict[tuple[int, int], Tensor]  # by (argument, result)


def run_again(call: Call, sources: Container[int], sinks: Iterable[int]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Run the operator on leaves of its own, one for each argument: x·x has two derivatives."""
    arguments = [_fresh(x, k in sources) for k, x in enumerate(call.inputs)]
    with torch.enable_grad():
        outputs = call.run(arguments)
    return arguments, {o: y for o in sinks if (y := outputs[o]) is not None}


def _fresh(x: Input, differentiable: bool) -> Tensor:
    data = x.tensor().detach()
    return data.requires_grad_() if differentiable else data.clone()  # batch norm writes to its running mean


def local(call: Call, argument: int, result: int) -> Tensor:
    """Differentiate one result of a call by one of its arguments: in the shape of the first, then of the second.

    Raises:
        BadArgument: there is none of that number, or autograd does not follow it.
    """
    _followed(call, "argument", argument, [x.value for x in call.inputs])
    _followed(call, "result", result, call.outputs)
    arguments, results = run_again(call, {argument}, [result])
    x, y = arguments[argument], results[result]
    return jacobian(y, x).reshape((*y.shape, *x.shape))


def _followed(call: Call, kind: str, number: int, values: Sequence[Value | None]) -> None:
    followed = [k for k, value in enumerate(values) if value is not None and value.differentiable]
    if number not in followed:
        there = ", ".join(map(str, followed)) or "none"
        raise BadArgument(f"{call.where} has no {kind} {number} that autograd follows; there are {there}")


def jacobian(y: Tensor, x: Tensor) -> Tensor:
    """Differentiate y by x: a matrix ∂y_i/∂x_j, from one backward call for each element of y."""
    rows = x.new_zeros(y.numel(), x.numel())
    if not y.requires_grad:
        return rows
    for i in range(y.numel()):
        one_hot = torch.zeros(y.numel(), dtype=y.dtype, device=y.device)
        one_hot[i] = 1
        (row,) = torch.autograd.grad(y, x, one_hot.view(y.shape), retain_graph=True, allow_unused=True)
        if row is not None:
            rows[i] = row.to_dense().reshape(-1)
    return rows


def dependence(
    run: Callable[[list[Tensor]], Sequence[Tensor | None]],
    arguments: Sequence[Tensor],
    sources: Collection[int],
    sinks: Collection[int],
) -> Jacobians:
    """Tell which results can depend on which arguments: where a derivative at some other numbers is not 0.

    It tells a ReLU that is off (0 here, and 1 elsewhere) from what an elementwise function never looks at. Numbers are
    drawn, from a seed of their own, so what shows itself at very few numbers only may be missed.
    """
    found = {(k, o): torch.zeros(0) for k, o in product(sources, sinks)}
    generator = torch.Generator().manual_seed(0)
    for size in PROBES:
        with suppress(RuntimeError):  # outside of what the operator is defined for
            moved = [_moved(x, size, generator).requires_grad_(k in sources) for k, x in enumerate(arguments)]
            with torch.enable_grad():
                outputs = run(moved)
            for k, o in found:
                y = outputs[o]
                if y is not None:
                    seen = jacobian(y, moved[k])
                    seen = (seen != 0) & seen.isfinite()
                    found[k, o] = seen | found[k, o] if len(found[k, o]) else seen
    return found


def _moved(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    return size * noise * (1 + x.detach().abs())
