"""An LSTM layer that ran as one fused operator, taken apart into the calls of its cells.

oneDNN runs a layer, in one direction, as one operator; cell by cell it takes about twice as long. So the forward pass
is recorded as it runs, and what a layer consists of is written down when somebody first looks at the tape. The
operator gave h_t for all t, and with these the gates of all steps are two products, one of them taken while recording:

    [i f g o]_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

(Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000, as `torch.nn.LSTM` has them).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import StaleTensor
from .isolation import alone, uncollected
from .layouts import Layout, contiguous
from .record import Again, Call, Input, Record, Saved, Slot, Value
from .storage import layout_of

LSTM = "mkldnn_rnn_layer"
SMALL = 10**8  # multiplications up to which layers come apart when the recording ends: calls are all that it costs

_REVERSE, _BIASED = 7, 12  # of the operator's arguments

_aten = torch.ops.aten
_SLOTS = tuple(map(Slot, range(3)))


def note(record: Record, call: Call) -> None:
    """Note that a layer will come apart: the numbers that its results will have then, and what does not wait for h."""
    call.outputs = call.outputs[:3]  # without oneDNN's own notes
    y, h, c = call.outputs
    assert y is not None
    assert h is not None
    assert c is not None
    last = y.id + _inside(call.inputs[0].shape[0])
    y.id, h.id, c.id = last, last - 1, last - 3  # tanh(c) is between
    (steps, batch, features), hidden = call.inputs[0].shape, call.inputs[5].shape[-1]
    record.fused += steps * batch * (features + hidden) * 4 * hidden
    record.count = last + 1
    if call.results:
        call.results = (*call.results[:3], Saved.own(_moved(call)))


def _moved(fused: Call) -> Tensor:
    """Compute W_ih x + b_ih + b_hh for all steps, which are its rows."""
    x, w_ih, _, b_ih, b_hh = (given.tensor() for given in fused.inputs[:5])
    biases = b_ih + b_hh if fused.args[_BIASED] else x.new_zeros(())
    return torch.addmm(biases, x.flatten(0, 1), w_ih.t())


def _inside(steps: int) -> int:
    return 5 + 16 * steps


def take_apart(record: Record) -> Record:
    """Replace every fused LSTM layer of a record by the calls of its cells.

    Raises:
        StaleTensor: a tensor that a layer read was modified in place after the recording; the record stays as it was.
    """
    if record.fused:
        with alone(), uncollected():
            calls = [part for call in record.calls for part in (_cells(call) if call.base == LSTM else (call,))]
        for index, call in enumerate(calls):
            call.index = index
        record.calls, record.fused = calls, 0
    return record


def take_small_apart(record: Record) -> None:
    """Do so at the end of a recording if that is little work; what cannot be done says so when it has to be."""
    if record.fused <= SMALL:
        with suppress(StaleTensor):
            take_apart(record)


class _Operand(NamedTuple):
    """A tensor inside a layer: its value (None: not followed), where it lies, and its data where that is kept.

    Attributes:
        constant: what it is among the record's constants.
    """

    value: Value | None
    at: Layout
    saved: Saved | None
    constant: Value | None = None

    @property
    def data(self) -> Tensor:
        assert self.saved is not None
        return self.saved.get()


class _Operator(NamedTuple):
    op: Any
    name: str
    base: str


def _operator(op: Any) -> _Operator:
    return _Operator(op, str(op), op._schema.name.split("::")[1])


_T, _VIEW, _UNBIND = _operator(_aten.t.default), _operator(_aten.view.default), _operator(_aten.unbind.int)
_MM, _ADDMM, _ADD = _operator(_aten.mm.default), _operator(_aten.addmm.default), _operator(_aten.add.Tensor)
_MUL, _TANH, _SIGMOID = _operator(_aten.mul.Tensor), _operator(_aten.tanh.default), _operator(_aten.sigmoid.default)
_SPLIT, _STACK = _operator(_aten.unsafe_split.Tensor), _operator(_aten.stack.default)


class _Writer:
    """Write calls in the place of a fused one, and number what they make."""

    def __init__(self, fused: Call) -> None:
        self.calls: list[Call] = []
        self._fused, x, y = fused, fused.inputs[0], fused.outputs[0]
        assert y is not None
        self._kind, self._device, self._followed = x.dtype, x.device, y.differentiable
        self._number = y.id - _inside(x.shape[0])

    def argument(self, position: int) -> _Operand:
        """Give an argument of the fused call."""
        x = self._fused.inputs[position]
        assert isinstance(x.saved, Saved)
        return _Operand(x.value, Layout(x.shape, x.stride, x.offset), x.saved, x.constant)

    def __call__(
        self,
        operator: _Operator,
        inputs: Sequence[_Operand],
        at: Layout,
        saved: Saved | None = None,
        *,
        args: tuple[Any, ...] = (),
        into: Value | None = None,
    ) -> _Operand:
        """Write a call with one result.

        Args:
            operator: what is called.
            inputs: its tensor arguments.
            at: how its result lies.
            saved: its result, where that is kept.
            args: its arguments, where there are others than tensors.
            into: the value that is its result, where the program has that one.
        """
        value = into or Value(0, at.size, self._kind, None, self._followed)
        call = self._write(operator, inputs, [value], args)
        if saved is not None:
            call.results, value.depth = (saved,), 0
        return _Operand(value, at, saved)

    def several(self, operator: _Operator, given: _Operand, results: Sequence[Layout], *args: Any) -> list[_Operand]:
        """Write a call with several results, none of which is kept."""
        values = [Value(0, at.size, self._kind, None, self._followed) for at in results]
        self._write(operator, [given], values, (_SLOTS[0], *args))
        return [_Operand(value, at, None) for value, at in zip(values, results, strict=True)]

    def _write(
        self, operator: _Operator, inputs: Sequence[_Operand], values: list[Value], args: tuple[Any, ...]
    ) -> Call:
        given, depth = [], 1
        for value, at, saved, constant in inputs:
            kept: Saved | Again | None = saved
            if saved is None and value is not None:
                kept, depth = Again(value), max(depth, 1 + (value.depth or 0))
            given.append(Input(value, *at, self._kind, self._device, kept, constant))
        of = self._fused
        call = Call(0, *operator, tuple(given), args or _SLOTS[: len(given)], {}, of.scopes, of.source)
        call.outputs = tuple(values)
        for value in values:
            assert value.id in (0, self._number)
            value.id, value.call, value.depth = self._number, call, depth
            self._number += 1
        self.calls.append(call)
        return call


def _cells(fused: Call) -> list[Call]:
    """Take a layer apart as PyTorch itself does without oneDNN: W_ih x for all steps at once, then cell by cell."""
    write = _Writer(fused)
    x, w_ih, w_hh, b_ih, b_hh, h, c = map(write.argument, range(7))
    y, last_h, last_c = fused.outputs[:3]
    (steps, batch, _), hidden = x.at.size, h.at.size[-1]
    order, biased = range(steps)[:: -1 if fused.args[_REVERSE] else 1], fused.args[_BIASED]
    ys, *ends, moved = _results(fused)
    hs = list(map(Saved, ys.unbind(0)))
    i, f, g, o, cs, tanh_cs = _gates(moved, w_hh.data, h.data, c.data, ys, order)

    one, four, whole = _lines(batch, hidden), _lines(batch, 4 * hidden), _lines(steps, batch, 4 * hidden)
    split = [Layout(one.size, four.stride, k * hidden) for k in range(4)]
    each = [Layout(*four[:2], t * batch * 4 * hidden) for t in range(steps)]
    product, skipped = (_ADDMM, 0) if biased else (_MM, 1)
    w, u = (write(_T, [m], layout_of(m.data.t()), Saved(m.data.t())) for m in (w_ih, w_hh))
    flat = x.data.flatten(0, 1)
    rows = write(_VIEW, [x], layout_of(flat), Saved(flat), args=(_SLOTS[0], list(flat.shape)))
    sums = write(product, [b_ih, rows, w][skipped:], _lines(steps * batch, 4 * hidden))
    inputs = write.several(_UNBIND, write(_VIEW, [sums], whole, args=(_SLOTS[0], list(whole.size))), each, 0)
    made: dict[int, _Operand] = {}
    for t in order:
        z = write(_ADD, [write(product, [b_hh, h, u][skipped:], four), inputs[t]], four)
        in_, forget, new, out = write.several(_SPLIT, z, split, hidden, 1)
        in_, forget = write(_SIGMOID, [in_], one, i[t]), write(_SIGMOID, [forget], one, f[t])
        new, out = write(_TANH, [new], one, g[t]), write(_SIGMOID, [out], one, o[t])
        terms = write(_MUL, [forget, c], one), write(_MUL, [in_, new], one)
        if t != order[-1]:
            c = write(_ADD, terms, one, cs[t])
            h = write(_MUL, [out, write(_TANH, [c], one, tanh_cs[t])], one, hs[t])
        else:
            c = write(_ADD, terms, one, Saved(ends[1]), into=last_c)
            h = write(_MUL, [out, write(_TANH, [c], one, tanh_cs[t])], one, Saved(ends[0]), into=last_h)
        made[t] = h
    slots = [Slot(t) for t in range(steps)]
    write(_STACK, [made[t] for t in range(steps)], layout_of(ys), Saved(ys), args=(slots,), into=y)
    return write.calls


def _results(fused: Call) -> list[Tensor]:
    """Give h_t for all t, the last h and the last c, and `_moved`; only what autograd follows was kept."""
    kept = [r.get() for r in fused.results if r is not None]
    return kept or [*(r for r in fused.run()[:3] if r is not None), _moved(fused)]


def _gates(moved: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, ys: Tensor, order: range) -> list[list[Saved]]:
    """Compute i, f, g, o, c and tanh(c) of every step, by step."""
    before = torch.cat((h[None], ys[:-1]) if order.step > 0 else (ys[1:], h[None]))
    sums = torch.addmm(moved, before.flatten(0, 1), w_hh.t())
    i, f, g, o = sums.view(*ys.shape[:2], 4, -1).unbind(2)
    i, f, g, o, cs = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), torch.empty_like(ys)
    for t in order:
        c = torch.addcmul(f[t] * c, i[t], g[t], out=cs[t])
    return [list(map(Saved.own, v.unbind(0))) for v in (i, f, g, o, cs, cs.tanh())]


def _lines(*size: int) -> Layout:
    return Layout(size, contiguous(size), 0)
