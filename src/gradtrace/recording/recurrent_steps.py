"""What recurrent cells consist of: the calls of each step, and the numbers that derivatives are read off.

Since h_t is known for all t, what does not wait for it is one product over all steps. With p_t = W_ih x_t + b_ih + b_hh
(of a GRU's n: b_hn alone)

    RNN     h_t = f(p_t + W_hh h_{t-1}),   f = tanh or relu
    GRU     [r z]_t = σ(p_t + W_hh h_{t-1}),   n_t = tanh(W_in x_t + b_in + r_t (b_hn + W_hn h_{t-1})),
            h_t = n_t + z_t (h_{t-1} - n_t)
    LSTM    [i f g o]_t = p_t + W_hh h_{t-1},   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

(Cho et al. 2014; Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; as `torch.nn` has them).
PyTorch adds b_hh at every step and takes gates one by one: the paths are the same, over more calls of weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .call_writer import (
    ADD,
    ADDCMUL,
    ADDMM,
    CAT,
    MM,
    RELU,
    SIGMOID,
    SUB,
    TANH,
    Operand,
    Operator,
    T,
    Writer,
    halves,
    joined,
    lines,
    section,
    split,
)
from .record import Saved
from .storage import layout_of


class Direction(NamedTuple):
    """One direction of one layer.

    Attributes:
        x: rows × features: the steps one after the other.
        weights: W_ih, W_hh, and b_ih, b_hh where there are biases.
        state: h, of an LSTM also c, before the first step: batch × hidden.
        ys: h_t for all steps, as rows.
        sizes: how many rows each step has: fewer and fewer, of packed sequences of several lengths.
        order: the steps.
    """

    x: Operand
    weights: Sequence[Operand]
    state: Sequence[Operand]
    ys: Tensor
    sizes: Sequence[int]
    order: range

    @property
    def hidden(self) -> int:
        return self.weights[1].at.size[1]

    def before(self) -> list[Tensor]:
        """Give h_{t-1} by step."""
        hs, first = self.ys.contiguous().split(list(self.sizes)), self.state[0].data.contiguous()
        out, h = list(hs), first
        for t in self.order:
            n = self.sizes[t]
            out[t] = h[:n] if len(h) >= n else torch.cat((h, first[len(h) : n]))
            h = hs[t]
        return out

    def moved(self) -> Tensor:
        """Compute W_ih x + b_ih."""
        x, w = self.x.data, self.weights[0].data.t()
        return torch.addmm(self.weights[2].data, x, w) if len(self.weights) > 2 else x.mm(w)


def _by_step(of: Direction, *numbers: Tensor) -> list[list[Saved]]:
    return [list(map(Saved.own, rows.split(list(of.sizes)))) for rows in numbers]


def _in_order(write: Writer, of: Direction, sums: Operand) -> Operand:
    """Put the steps one after the other as they run: of equally strong ones, the first to run comes first."""
    if of.order.step > 0:
        return sums
    parts = split(write, sums, of.sizes, 0)
    return joined(write, CAT, parts[::-1], 0, None, None)


def biased(write: Writer, of: Direction, sums: Operand) -> list[Operand]:
    """Add b_hh to what does not wait for h, and give it step by step."""
    if len(of.weights) > 2:
        sums = write(ADD, [_in_order(write, of, sums), of.weights[3]], lines(*sums.at.size))
        return split(write, sums, [of.sizes[t] for t in of.order], 0)[:: of.order.step]
    return split(write, sums, of.sizes, 0)


Step = Callable[[int, Operand], Operand]
Begin = Callable[[Writer, Direction, Operand, Operand], Step]


def _plain(nonlinear: Operator) -> Begin:
    """Make an RNN's step."""

    def begin(write: Writer, of: Direction, sums: Operand, u: Operand) -> Step:
        hs, pre = list(map(Saved, of.ys.split(list(of.sizes)))), biased(write, of, sums)

        def step(t: int, h: Operand) -> Operand:
            at = lines(of.sizes[t], of.hidden)
            return write(nonlinear, [write(ADDMM, [pre[t], h, u], at)], at, hs[t])

        return step

    return begin


def _gru(write: Writer, of: Direction, sums: Operand, u: Operand) -> Step:
    """Make a GRU's step."""
    rows, hidden = sums.at.size[0], of.hidden
    gates, new = split(write, sums, [2 * hidden, hidden], 1)
    nothing = of.ys.new_zeros(()).expand(rows, hidden)
    padded = [gates, Operand(None, layout_of(nothing), Saved.own(nothing))]
    pre = biased(write, of, joined(write, CAT, padded, 1, None, None))
    news = split(write, new, of.sizes, 0)
    rz, n, change, of_new = _by_step(of, *_gru_gates(of))
    hs = list(map(Saved, of.ys.split(list(of.sizes))))

    def step(t: int, h: Operand) -> Operand:
        size = of.sizes[t]
        one, two, three = (lines(size, k * hidden) for k in (1, 2, 3))
        gates, inner = split(write, write(ADDMM, [pre[t], h, u], three), [2 * hidden, hidden], 1)
        reset, update = halves(write, write(SIGMOID, [gates], two, rz[t]))
        inner = inner._replace(saved=of_new[t])
        candidate = write(TANH, [write(ADDCMUL, [news[t], inner, reset], one)], one, n[t])
        return write(ADDCMUL, [candidate, update, write(SUB, [h, candidate], one, change[t])], one, hs[t])

    return step


def _gru_gates(of: Direction) -> list[Tensor]:
    """Compute [r z], n, h_{t-1} - n and b_hn + W_hn h_{t-1} as PyTorch does."""
    u, before, moved = of.weights[1].data.t(), of.before(), of.moved()
    sums = torch.empty_like(moved)
    for h, out in zip(before, sums.split(list(of.sizes)), strict=True):
        torch.addmm(of.weights[3].data, h, u, out=out) if len(of.weights) > 2 else torch.mm(h, u, out=out)
    sizes, n = list(of.sizes), of.ys.new_empty(of.ys.shape)
    # step by step, and gate by gate: kernels round what fills no whole register otherwise
    for out, given, candidate in zip(sums.split(sizes), moved.split(sizes), n.split(sizes), strict=True):
        (r, z, new), (of_r, of_z, of_n) = out.chunk(3, 1), given.chunk(3, 1)
        r.add_(of_r).sigmoid_()
        z.add_(of_z).sigmoid_()
        torch.add(of_n, new * r, out=candidate).tanh_()
    return [sums[:, : 2 * of.hidden], n, torch.cat(before) - n, sums[:, 2 * of.hidden :]]


_STEPS: dict[str, Begin] = {"gru": _gru, "rnn_tanh": _plain(TANH), "rnn_relu": _plain(RELU)}


def input_sums(write: Writer, of: Direction) -> tuple[Operand, Operand]:
    """Write W_ih x + b_ih for all steps at once; give it, and W_hh transposed."""
    w, u = (write(T, [m], layout_of(m.data.t()), Saved(m.data.t())) for m in of.weights[:2])
    size = lines(of.x.at.size[0], of.weights[0].at.size[0])
    sums = write(ADDMM, [of.weights[2], of.x, w], size) if len(of.weights) > 2 else write(MM, [of.x, w], size)
    return sums, u


def all_steps(write: Writer, kind: str, of: Direction) -> tuple[list[Operand], Operand]:
    """Write all steps; give h by step, and the last h of every sequence."""
    step = _STEPS[kind](write, of, *input_sums(write, of))
    first = h = of.state[0]
    made: dict[int, Operand] = {}
    ends: list[Operand] = []
    for t in of.order:
        n, have = of.sizes[t], h.at.size[0]
        if n > have:
            data = torch.cat((h.data, first.data[have:n]))
            h = joined(write, CAT, [h, section(write, first, have, n)], 0, data, None)
        elif n < have:
            if h is not first:
                ends.append(section(write, h, n, have))
            h = section(write, h, 0, n)
        h = made[t] = step(t, h)
    last = joined(write, CAT, [h, *ends[::-1]], 0, None, None) if ends else h
    return [made[t] for t in range(len(of.sizes))], last
