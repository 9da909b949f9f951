"""Recurrent layers that ran as one call, taken apart into the calls of their cells.

oneDNN runs an LSTM layer, in one direction, as one operator; GRUs and plain RNNs run cell by cell below `torch.gru` and
`torch.rnn_tanh`, hundreds of operators of a few microseconds each, of which a recording would take notice one by one.
So the forward pass runs as it would without a recording, what it gave is recorded as one call, and what the call
consists of (`recurrent_steps`) is written down when somebody first looks at the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import merge
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..errors import StaleTensor
from .call_writer import (
    ADDCMUL,
    ADDMM,
    CAT,
    MUL,
    SIGMOID,
    STACK,
    TANH,
    UNBIND,
    Operand,
    Writer,
    as_rows,
    halves,
    joined,
    lines,
    split,
    turned,
)
from .constants import when
from .isolation import alone
from .layouts import Layout
from .process_state import Held
from .record import Call, Record, Saved, Value
from .recurrent_steps import Direction, all_steps, biased, input_sums
from .storage import layout_of

LSTM = "mkldnn_rnn_layer"
WHOLE = ("gru", "rnn_tanh", "rnn_relu")  # functions of PyTorch, and operators, that run several layers cell by cell
FUSED = {LSTM, *WHOLE}
SMALL = 10**8  # multiplications up to which layers come apart when the recording ends: calls are all that it costs

_REVERSE, _BIASED = 7, 12  # of the LSTM operator's arguments
_MOST = 18  # values of a direction: at each step, and besides


# ---------------------------------------------------------------- recording


def _whole(plain: Callable[..., Any], operators: Any) -> Callable[..., Any]:
    """Make a function that runs all layers as one call of the recording that sees it, if there is one."""

    def run(*args: Any, **kwargs: Any) -> Any:
        whole = getattr(_get_current_dispatch_mode(), "whole", None)
        if whole is None or kwargs or len(args) != 9 or not _ordinary(args):
            return plain(*args, **kwargs)
        return whole(operators.input if isinstance(args[2], (list, tuple)) else operators.data, args)

    return run


def _ordinary(args: Sequence[Any]) -> bool:
    """Tell whether autograd follows a call on plain numbers of the CPU, which nothing casts or transforms."""
    tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,)) if isinstance(t, Tensor)]
    numbers = [t for t in tensors if t.is_floating_point()]
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and any(t.requires_grad for t in numbers)
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.numel() for t in tensors)
        and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))  # type: ignore[attr-defined]
        and len({t.dtype for t in numbers}) == 1
    )


def _set() -> dict[tuple[Any, str], Any]:
    was = {(where, name): getattr(where, name) for where in (torch, torch._VF) for name in WHOLE}  # torch.nn has _VF's
    for where, name in was:
        setattr(where, name, _whole(was[torch, name], getattr(torch.ops.aten, name)))
    return was


def _restore(was: dict[tuple[Any, str], Any]) -> None:
    for (where, name), function in was.items():
        setattr(where, name, function)


# the functions, not the operators below them, whose kernels other threads may be running while they are changed
layers_as_one = Held(_set, _restore)


def random_state(args: Sequence[Any]) -> Tensor | None:
    """Give the state of the random numbers before several layers run; None where they draw none."""
    layers, dropout, train = args[_options(args) + 1 :][:3]
    return torch.get_rng_state() if train and dropout and layers > 1 else None


def _options(args: Sequence[Any]) -> int:
    """Give the position of the first argument that is no tensor: has_biases."""
    return 3 if isinstance(args[2], (list, tuple)) else 4


def note(record: Record, call: Call) -> None:
    """Note that layers will come apart: the numbers that results will have then, and what does not wait for h."""
    results: Sequence[Value | None] = call.outputs
    if call.base == LSTM:
        call.outputs = y, h, c = call.outputs[:3]  # without oneDNN's own notes
        results = c, None, h, y  # tanh(c) is between
        if call.results:
            call.results = (*call.results[:3], Saved.own(_moved(call)))
    record.fused += _products(call)
    record.count += _room(call)
    for value in results:
        if value is not None:
            value.id = record.count
        record.count += 1


def _products(call: Call) -> int:
    """Give how many multiplications there are with a layer's weights."""
    if call.base == LSTM:
        return prod(call.inputs[0].shape[:2]) * sum(prod(w.shape) for w in call.inputs[1:3])
    layers = _Layers.of(call)
    return sum(layers.sizes) * sum(prod(w.shape) for w in call.inputs[layers.params :] if len(w.shape) == 2)


def _room(call: Call) -> int:
    """Give how many values a layer comes apart into, at most."""
    if call.base == LSTM:
        return _MOST * (1 + call.inputs[0].shape[0])
    layers = _Layers.of(call)
    return layers.number * layers.directions * _MOST * (1 + len(layers.sizes))


def _moved(fused: Call) -> Tensor:
    """Compute an LSTM's W_ih x + b_ih + b_hh for all steps, which are its rows."""
    x, w_ih, _, b_ih, b_hh = (given.tensor() for given in fused.inputs[:5])
    biases = b_ih + b_hh if fused.args[_BIASED] else x.new_zeros(())
    return torch.addmm(biases, x.flatten(0, 1), w_ih.t())


# ---------------------------------------------------------------- writing calls


def take_apart(record: Record) -> Record:
    """Replace every recurrent layer of a record that ran as one call by the calls of its cells.

    Raises:
        StaleTensor: a tensor that a layer read was modified in place after the recording; the record stays as it was.
    """
    if not record.fused:
        return record
    calls: list[Call] = []
    constants: list[Call] = []
    with alone():
        for call in record.calls:
            if call.base in FUSED:
                first = min(v.id for v in call.outputs if v is not None) - _room(call)
                write = Writer(call, first)
                (_lstm if call.base == LSTM else _several)(write, call)
                calls += write.calls
                constants += write.constants
            else:
                calls.append(call)
    constants = list(merge(record.constants, constants, key=when))
    for made in (calls, constants):
        for index, call in enumerate(made):
            call.index = index
    record.calls, record.constants, record.fused = calls, constants, 0
    return record


def take_small_apart(record: Record) -> None:
    """Do so at the end of a recording if that is little work; what cannot be done says so when it has to be."""
    if record.fused <= SMALL:
        with suppress(StaleTensor):
            take_apart(record)


# ---------------------------------------------------------------- several layers


class _Layers(NamedTuple):
    """What a call of `torch.gru` and its like says of its layers.

    Attributes:
        sizes: how many rows each step has.
        packed: whether the steps lie one after the other already, as packed sequences.
        hx, params: positions of the states before the first step, and of the first parameter.
        each: how many parameters a direction has.
    """

    sizes: list[int]
    packed: bool
    hx: int
    params: int
    each: int
    number: int
    dropout: float
    directions: int
    batch_first: bool

    @classmethod
    def of(cls, call: Call) -> _Layers:
        """Read a call's arguments."""
        packed = not isinstance(call.args[2], (list, tuple))
        biases, count, dropout, train, both = call.args[4 if packed else 3 :][:5]
        batch_first = False if packed else call.args[8]
        x, hx = call.inputs[0].shape, 2 if packed else 1
        if packed:
            sizes = call.inputs[1].tensor().tolist()
        else:
            steps, batch = (x[1], x[0]) if batch_first else x[:2]
            sizes = [batch] * steps
        dropout = float(dropout) if train else 0.0
        return cls(sizes, packed, hx, hx + 1, 4 if biases else 2, count, dropout, 2 if both else 1, batch_first)


def _several(write: Writer, fused: Call) -> None:
    """Take layers apart as PyTorch runs them: each over all steps, in one direction or in both."""
    layers = _Layers.of(fused)
    x, hx = write.argument(0), write.argument(layers.hx)
    if layers.batch_first:
        x = turned(write, x, None)
    number = layers.number * layers.directions
    at = Layout(hx.at.size[1:], hx.at.stride[1:], hx.at.offset)
    states = [at._replace(offset=at.offset + k * hx.at.stride[0]) for k in range(number)]
    states = write.several(UNBIND, hx, states, 0, saved=list(map(Saved, hx.data.unbind(0))))
    y = fused.results[0]
    assert y is not None
    final = y.get().transpose(0, 1) if layers.batch_first else y.get()
    noise = _Noise(fused, layers.dropout)
    ends: list[Operand] = []
    for n in range(layers.number):
        last = n == layers.number - 1
        mine = states[n * layers.directions :][: layers.directions]
        data = final if last else _run(fused, layers, x, mine, n, write)
        x, some = _layer(write, fused, layers, n, x, mine, data, last=last)
        ends += some
        if not last and layers.dropout:
            x = noise(write, x)
    joined(write, STACK, ends, 0, None, fused.outputs[1])


def _layer(
    write: Writer,
    fused: Call,
    layers: _Layers,
    n: int,
    x: Operand,
    states: Sequence[Operand],
    data: Tensor,
    *,
    last: bool,
) -> tuple[Operand, list[Operand]]:
    """Write a layer; give its result, and the last h of each direction."""
    given, hidden, order = as_rows(write, x), states[0].at.size[1], range(len(layers.sizes))
    ways, ends = [], []
    for d, state in enumerate(states):
        part = data[..., d * hidden : (d + 1) * hidden]
        of = Direction(
            given,
            _weights(write, layers, n * layers.directions + d),
            [state],
            part if layers.packed else part.flatten(0, 1),
            layers.sizes,
            order[:: -1 if d else 1],
        )
        hs, end = all_steps(write, fused.base, of)
        into = fused.outputs[0] if last and layers.directions == 1 and not layers.batch_first else None
        ways.append(joined(write, CAT if layers.packed else STACK, hs, 0, part, into))
        ends.append(end)
    if layers.directions > 1:
        into = fused.outputs[0] if last and not layers.batch_first else None
        ways = [joined(write, CAT, ways, data.dim() - 1, data, into)]
    if last and layers.batch_first:
        ways = [turned(write, ways[0], fused.outputs[0])]
    return ways[0], ends


def _weights(write: Writer, layers: _Layers, direction: int) -> list[Operand]:
    first = layers.params + direction * layers.each
    return [write.argument(position) for position in range(first, first + layers.each)]


def _run(fused: Call, layers: _Layers, x: Operand, states: Sequence[Operand], n: int, write: Writer) -> Tensor:
    """Run a layer below the last one again: what it gave is with autograd alone."""
    params = [w.data for d in range(layers.directions) for w in _weights(write, layers, n * layers.directions + d)]
    given: list[Any] = [x.data, fused.inputs[1].tensor()] if layers.packed else [x.data]
    options = [layers.each == 4, 1, 0.0, False, layers.directions == 2]
    h = torch.stack([s.data for s in states])
    return fused.op(*given, h, params, *options, *(() if layers.packed else (False,)))[0]


class _Noise:
    """Draws again what dropout drew between layers."""

    def __init__(self, fused: Call, dropout: float) -> None:
        self._dropout, self._generator = dropout, torch.Generator()
        if dropout and len(fused.results) > 2 and fused.results[2] is not None:
            self._generator.set_state(fused.results[2].get())

    def __call__(self, write: Writer, x: Operand) -> Operand:
        """Write a dropout."""
        keep = 1 - self._dropout
        data = torch.empty_like(x.data)
        noise = data.bernoulli_(keep, generator=self._generator).div_(keep) if keep else data.new_zeros(())
        made = x.data * noise
        return write(MUL, [x, Operand(None, layout_of(noise), Saved.own(noise))], layout_of(made), Saved.own(made))


# ---------------------------------------------------------------- oneDNN's LSTM


def _lstm(write: Writer, fused: Call) -> None:
    """Take an LSTM layer apart."""
    x, *weights, h, c = map(write.argument, range(7))
    y, last_h, last_c = fused.outputs[:3]
    steps, batch = x.at.size[:2]
    ys, *ends, moved = _lstm_results(fused)
    order = range(steps)[:: -1 if fused.args[_REVERSE] else 1]
    weights = weights if fused.args[_BIASED] else weights[:2]
    of = Direction(as_rows(write, x), weights, [h, c], ys.flatten(0, 1), [batch] * steps, order)
    hs, hidden = list(map(Saved, ys.unbind(0))), of.hidden
    i_f, g, o, cs, tanh_cs = _lstm_gates(of, moved, ys, c.data)
    one, two, four = (lines(batch, k * hidden) for k in (1, 2, 4))
    sums, u = input_sums(write, of)
    pre = biased(write, of, sums)
    made: dict[int, Operand] = {}
    for t in order:
        both, new, out = split(write, write(ADDMM, [pre[t], h, u], four), [2 * hidden, hidden, hidden], 1)
        in_, forget = halves(write, write(SIGMOID, [both], two, i_f[t]))
        new, out = write(TANH, [new], one, g[t]), write(SIGMOID, [out], one, o[t])
        kept, at_end = write(MUL, [forget, c], one), t == order[-1]
        kept_c, kept_h = (Saved(ends[1]), Saved(ends[0])) if at_end else (cs[t], hs[t])
        c = write(ADDCMUL, [kept, in_, new], one, kept_c, into=last_c if at_end else None)
        tanh_c = write(TANH, [c], one, tanh_cs[t])
        h = made[t] = write(MUL, [out, tanh_c], one, kept_h, into=last_h if at_end else None)
    joined(write, STACK, [made[t] for t in range(steps)], 0, ys, y)


def _lstm_results(fused: Call) -> list[Tensor]:
    """Give h_t for all t, the last h and the last c, and `_moved`; only what autograd follows was kept."""
    kept = [r.get() for r in fused.results if r is not None]
    return kept or [*(r for r in fused.run()[:3] if r is not None), _moved(fused)]


def _lstm_gates(of: Direction, moved: Tensor, ys: Tensor, c: Tensor) -> list[list[Saved]]:
    """Compute [i f], g, o, c and tanh(c) of every step, by step."""
    sums = torch.addmm(moved, torch.cat(of.before()), of.weights[1].data.t())
    i_f, g, o = sums.view(*ys.shape[:2], -1).split([2 * of.hidden, of.hidden, of.hidden], 2)
    i_f, g, o, cs = i_f.sigmoid(), g.tanh(), o.sigmoid(), torch.empty_like(ys)
    i, f = i_f.chunk(2, 2)
    for t in of.order:
        c = torch.addcmul(f[t] * c, i[t], g[t], out=cs[t])
    return [list(map(Saved.own, v.unbind(0))) for v in (i_f, g, o, cs, cs.tanh())]
