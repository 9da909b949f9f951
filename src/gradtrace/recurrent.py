"""An LSTM layer that ran as one fused operator, taken apart into the calls of its cells.

oneDNN runs a layer, in one direction, as one operator; cell by cell it takes about twice as long. So the forward pass
is recorded as it runs, and what a layer consists of is written down when somebody first looks at the tape. The
operator gave h_t for all t, and with these the gates of all steps are one product:

    [i f g o]_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

(Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000, as `torch.nn.LSTM` has them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .alone import alone
from .storage import layout_of
from .structure import Layout, contiguous
from .tape import Again, Call, Input, Record, Saved, Slot, Value

LSTM = "mkldnn_rnn_layer"

_aten = torch.ops.aten
_SLOTS = tuple(map(Slot, range(3)))


def room(steps: int) -> int:
    """Count the values inside a layer, which a recording keeps numbers for."""
    return 5 + 16 * steps


def take_apart(record: Record) -> Record:
    """Replace every fused LSTM layer of a record by the calls of its cells.

    Raises:
        StaleTensor: a tensor that a layer read was modified in place after the recording; the record stays as it was.
    """
    if any(call.base == LSTM for call in record.calls):
        with alone():
            calls = [part for call in record.calls for part in (_cells(call) if call.base == LSTM else (call,))]
        for index, call in enumerate(calls):
            call.index = index
        record.calls = calls
    return record


@dataclass(slots=True)
class _Operand:
    """A tensor inside a layer: its value (None: not followed), where it lies, and its data where that is kept."""

    value: Value | None
    at: Layout
    saved: Saved | None

    @property
    def data(self) -> Tensor:
        assert self.saved is not None
        return self.saved.get()


class _Writer:
    """Write calls in the place of a fused one, and number what they make."""

    def __init__(self, fused: Call) -> None:
        self.calls: list[Call] = []
        self._fused, x, y = fused, fused.inputs[0], fused.outputs[0]
        assert y is not None
        self._kind, self._device, self._followed = x.dtype, x.device, y.differentiable
        self._number = y.id - room(x.shape[0])

    def argument(self, position: int) -> _Operand:
        """Give an argument of the fused call."""
        x = self._fused.inputs[position]
        assert isinstance(x.saved, Saved)
        return _Operand(x.value, Layout(x.shape, x.stride, x.offset), x.saved)

    def __call__(
        self,
        op: Any,
        inputs: Sequence[_Operand],
        *results: Layout | Tensor,
        args: tuple[Any, ...] = (),
        into: Value | None = None,
    ) -> list[_Operand]:
        """Write a call.

        Args:
            op: the operator.
            inputs: its tensor arguments.
            results: the data of each where it is kept, else how it lies.
            args: its arguments, where there are others than tensors.
            into: the value that is its result, where the program has that one.
        """
        made = [self._made(result, into) for result in results]
        of, name, args = self._fused, str(op), args or _SLOTS[: len(inputs)]
        call = Call(0, op, name, name.split(".")[1], self._inputs(inputs), args, {}, of.scopes, of.source)
        call.outputs = tuple([x.value for x in made])
        if made[0].saved is not None:
            call.results = tuple([x.saved for x in made])
        depth = 1 + max([x.value.depth or 0 for x in inputs if x.saved is None and x.value is not None], default=0)
        for value in call.outputs:
            assert value is not None
            value.call, value.depth = call, 0 if call.results else depth
        self.calls.append(call)
        return made

    def _made(self, result: Layout | Tensor, into: Value | None) -> _Operand:
        at, saved = (layout_of(result), Saved(result)) if isinstance(result, Tensor) else (result, None)
        value = into or Value(0, at.size, self._kind, differentiable=self._followed)
        value.id, self._number = self._number, self._number + 1
        return _Operand(value, at, saved)

    def _inputs(self, operands: Sequence[_Operand]) -> tuple[Input, ...]:
        given = []
        for x in operands:
            again = Again(x.value) if x.saved is None and x.value is not None else None
            given.append(Input(x.value, *x.at, self._kind, self._device, x.saved or again))
        return tuple(given)


def _cells(fused: Call) -> list[Call]:
    """Take a layer apart as PyTorch itself does without oneDNN: W_ih x for all steps at once, then cell by cell."""
    write = _Writer(fused)
    x, w_ih, w_hh, b_ih, b_hh, h, c = map(write.argument, range(7))
    y, last_h, last_c = fused.outputs[:3]
    (steps, batch, features), hidden = x.at.size, h.at.size[-1]
    order, biased = range(steps)[:: -1 if fused.args[7] else 1], fused.args[12]
    ys, ends = _results(fused)
    biases = b_ih.data + b_hh.data if biased else torch.zeros((), dtype=ys.dtype, device=ys.device)
    i, f, g, o, cs, tanh_cs = _gates(x.data, w_ih.data, w_hh.data, biases, h.data, c.data, ys, order)

    one, four = _rows(batch, hidden), _rows(batch, 4 * hidden)
    split = [Layout(one.size, four.stride, k * hidden) for k in range(4)]
    (w,) = write(_aten.t.default, [w_ih], w_ih.data.t())
    (u,) = write(_aten.t.default, [w_hh], w_hh.data.t())
    (rows,) = write(_aten.view.default, [x], x.data.flatten(0, 1), args=(Slot(0), [steps * batch, features]))
    product = partial(write, _aten.addmm.default if biased else _aten.mm.default)
    (moved,) = product([b_ih, rows, w][not biased :], _rows(steps * batch, 4 * hidden))
    whole = (steps, batch, 4 * hidden)
    (moved,) = write(_aten.view.default, [moved], _rows(*whole), args=(Slot(0), list(whole)))
    each = [four._replace(offset=t * batch * 4 * hidden) for t in range(steps)]
    inputs = write(_aten.unbind.int, [moved], *each, args=(Slot(0), 0))
    hs: dict[int, _Operand] = {}
    for t in order:
        (z,) = product([b_hh, h, u][not biased :], four)
        (z,) = write(_aten.add.Tensor, [z, inputs[t]], four)
        parts = write(_aten.unsafe_split.Tensor, [z], *split, args=(Slot(0), hidden, 1))
        (in_,) = write(_aten.sigmoid.default, parts[:1], i[t])
        (forget,) = write(_aten.sigmoid.default, parts[1:2], f[t])
        (new,) = write(_aten.tanh.default, parts[2:3], g[t])
        (out,) = write(_aten.sigmoid.default, parts[3:], o[t])
        (kept,) = write(_aten.mul.Tensor, [forget, c], one)
        (added,) = write(_aten.mul.Tensor, [in_, new], one)
        at_end = t == order[-1]
        (c,) = write(_aten.add.Tensor, [kept, added], ends[1] if at_end else cs[t], into=last_c if at_end else None)
        (tanh_c,) = write(_aten.tanh.default, [c], tanh_cs[t])
        (h,) = write(_aten.mul.Tensor, [out, tanh_c], ends[0] if at_end else ys[t], into=last_h if at_end else None)
        hs[t] = h
    write(_aten.stack.default, [hs[t] for t in range(steps)], ys, args=([Slot(t) for t in range(steps)],), into=y)
    return write.calls


def _results(fused: Call) -> tuple[Tensor, list[Tensor]]:
    """Give h_t for all t, and the last h and c; only what autograd follows was kept."""
    ys, *ends = [r.get() for r in fused.results[:3] if r is not None] or [r for r in fused.run()[:3] if r is not None]
    return ys, ends


def _gates(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, biases: Tensor, h: Tensor, c: Tensor, ys: Tensor, order: range
) -> list[tuple[Tensor, ...]]:
    """Compute i, f, g, o, c and tanh(c) of every step, by step."""
    before = torch.cat((h[None], ys[:-1]) if order.step > 0 else (ys[1:], h[None]))
    sums = torch.addmm(biases, x.flatten(0, 1), w_ih.t()).addmm_(before.flatten(0, 1), w_hh.t())
    i, f, g, o = sums.view(*ys.shape[:2], 4, -1).unbind(2)
    i, f, g, o, cs = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), torch.empty_like(ys)
    for t in order:
        c = torch.addcmul(f[t] * c, i[t], g[t], out=cs[t])
    return [v.unbind(0) for v in (i, f, g, o, cs, cs.tanh())]


def _rows(*size: int) -> Layout:
    return Layout(size, contiguous(size), 0)
