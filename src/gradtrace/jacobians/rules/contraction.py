"""Contractions: operators that are linear in each of several arguments, as einsum writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import LETTERS, Contraction, diagonal
from .table import Edge, Rule, argument, register, result


def product(equation: str, first: int = 0, scale: str = "", added: str = "") -> Rule:
    """Make the rule of y = scale · einsum(equation, a, b) [+ added · c], c being argument 0.

    Args:
        equation: "ik,kj->ij", one letter an axis.
        first: the position of a; b follows it.
        scale, added: names of arguments that multiply (alpha and beta), "" where there is none.
    """
    (a, b), y = equation.split("->")[0].split(","), equation.split("->")[1]

    def rule(call: Call) -> Iterator[Edge]:
        out = call.outputs[0]
        assert out is not None
        factor = argument(call, scale) if scale else 1
        if added:
            beta = argument(call, added)
            weight = None if beta == 1 else lambda: _full(call.inputs[0].tensor(), out.shape, beta)
            yield 0, 0, diagonal(out.shape, call.inputs[0].shape, weight)
        for x, w, at, other in ((a, b, first, first + 1), (b, a, first + 1, first)):
            yield at, 0, Contraction(y, x, out.shape, call.inputs[at].shape, w, _scaled(call, other, factor))

    return rule


def _scaled(call: Call, position: int, factor: float) -> Callable[[], Tensor]:
    def weight() -> Tensor:
        data = call.inputs[position].tensor()
        return data if factor == 1 else data * factor

    return weight


def _full(like: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    return like.new_full((), value).expand(shape)


def trilinear(call: Call) -> Iterator[Edge]:
    """_trilinear (nn.Bilinear): three factors, each with axes of size 1 put in, multiplied and summed over some."""
    expands = [argument(call, f"expand{k}") for k in (1, 2, 3)]
    ndim = len(call.inputs[0].shape) + len(expands[0])
    names = LETTERS[:ndim]
    of = ["".join(c for d, c in enumerate(names) if d not in e) for e in expands]
    y = "".join(c for d, c in enumerate(names) if d not in argument(call, "sumdim"))
    for k in range(3):
        a, b = [i for i in range(3) if i != k]
        # what is in neither x nor y, the operator adds up
        w = "".join(c for c in names if c in of[a] + of[b] and c in y + of[k])

        def weight(a: int = a, b: int = b, w: str = w) -> Tensor:
            left, right = call.inputs[a].tensor(), call.inputs[b].tensor()
            return torch.einsum(f"{of[a]},{of[b]}->{w}", left, right)

        yield k, 0, Contraction(y, of[k], result(call).shape, call.inputs[k].shape, w, weight)


register("_trilinear", trilinear)
register("mm", product("ik,kj->ij"))
register("bmm", product("bik,bkj->bij"))
register("mv", product("ik,k->i"))
register("dot vdot", product("k,k->"))
register("addmm", product("ik,kj->ij", 1, "alpha", "beta"))
register("baddbmm", product("bik,bkj->bij", 1, "alpha", "beta"))
register("addbmm", product("bik,bkj->ij", 1, "alpha", "beta"))
register("addmv", product("ik,k->i", 1, "alpha", "beta"))
register("addr", product("i,j->ij", 1, "alpha", "beta"))
