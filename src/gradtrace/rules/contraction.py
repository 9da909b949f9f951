"""Contractions: operators that are linear in each of several arguments, as einsum writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from ..structure import Contraction, diagonal
from ..tape import Call
from .table import Edge, Rule, register


def product(equation: str, first: int = 0, scale: str = "", added: str = "") -> Rule:
    """Make the rule of y = scale · einsum(equation, a, b) [+ added · c], c being argument 0.

    Args:
        equation: "ik,kj->ij", one letter an axis.
        first: the position of a; b follows it.
        scale, added: names of keyword arguments that multiply (alpha and beta), "" where there is none.
    """
    (a, b), y = equation.split("->")[0].split(","), equation.split("->")[1]

    def rule(call: Call) -> Iterator[Edge]:
        out = call.outputs[0]
        assert out is not None
        factor = call.kwargs.get(scale, 1)
        if added:
            beta = call.kwargs.get(added, 1)
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


register("mm", product("ik,kj->ij"))
register("bmm", product("bik,bkj->bij"))
register("mv", product("ik,k->i"))
register("dot vdot", product("k,k->"))
register("addmm", product("ik,kj->ij", 1, "alpha", "beta"))
register("baddbmm", product("bik,bkj->bij", 1, "alpha", "beta"))
register("addbmm", product("bik,bkj->ij", 1, "alpha", "beta"))
register("addmv", product("ik,k->i", 1, "alpha", "beta"))
register("addr", product("i,j->ij", 1, "alpha", "beta"))
