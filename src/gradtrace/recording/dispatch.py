"""Record the operator calls of a forward pass, as PyTorch dispatches them.

`Capture` is a dispatch mode: for every operator call it asks `Values` which of the arguments autograd follows, and
writes the call to a `Record`. Nothing outside the `with` block changes: modes, hooks and backend flags are restored
however it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _autograd  # type: ignore[attr-defined]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import GradtraceError, Unsupported
from .fused_lstm import LSTM, note, take_small_apart
from .identity import Values
from .record import Again, Call, Input, Record, Saved, Slot, Value, flat_tensors
from .scopes import Scopes, source_line
from .storage import disjoint, layout_of

# what these write does not depend on what was there
_DRAWING = ("uniform", "normal", "bernoulli", "random", "exponential", "cauchy", "log_normal", "geometric")
_OVERWRITING = {"copy", "fill", "zero", *_DRAWING}


# Results that autograd saves for its backward pass, so that keeping them costs no memory: a derivative is a function of
# them, and a pass over the tape need not run the operator again. By position: mean and rstd of a norm, winners.
_FIRST = "tanh sigmoid relu exp exp2 expm1 sqrt rsqrt reciprocal tan _softmax _safe_softmax _log_softmax logsumexp"
_SECOND = "max_pool2d_with_indices max min sort topk"
_NORMS = "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit"
_KEPT = (
    dict.fromkeys(_FIRST.split(), (0,))
    | dict.fromkeys(_SECOND.split(), (1,))
    | dict.fromkeys(_NORMS.split(), (1, 2))
    | {LSTM: (0, 1, 2)}
)

# Operators whose derivative needs no argument: it is constant, or a function of the result. Autograd does not keep them
# either; whoever wants them has them computed again, by at most so many operators.
_CONSTANT = "add sub neg clone cat stack unsafe_split unsafe_split_with_sizes unsafe_chunk _unsafe_view"
_NEEDLESS = f"{_CONSTANT} tanh sigmoid relu _softmax _safe_softmax _log_softmax"
_DEEPEST = 16
# views that can be taken of a copy as well: they don't ask how it lies in memory
_STEADY = "split split_with_sizes unsafe_split chunk unbind slice select narrow t transpose permute expand"

# lazy conjugates and negatives are resolved below autograd, where their consumers would be seen on strangers
_EAGER = {torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default}
_EAGER[torch.ops.aten._neg_view.default] = torch.ops.aten.neg.default


@dataclass(frozen=True, slots=True)
class Operator:
    """What capture needs to know of an operator, read from its schema once.

    Attributes:
        func: what is called, and recorded.
        name: with its overload, "aten.mul_.Tensor".
        base: its bare name, "mul" for aten.mul_.Tensor.
        written: (position, name) of the arguments that it writes to.
        overwrites: whether what its first argument held does not matter.
        view: whether it moves no data: views, and in-place changes of a tensor's own shape.
        reshapes: whether it is one of the latter (t_, squeeze_).
        draws: whether it draws random numbers.
        kept: positions of the results that autograd saves.
        needless: whether its derivative needs no argument's data.
        repeatable: whether running it again on copies gives the same.
    """

    func: Any
    name: str
    base: str
    written: tuple[tuple[int, str], ...]
    overwrites: bool
    view: bool
    reshapes: bool
    draws: bool
    kept: tuple[int, ...]
    needless: bool
    repeatable: bool


@cache
def operator(op: Any) -> Operator:
    """Read an operator's schema."""
    op = _EAGER.get(op, op)
    reshapes = torch.Tag.inplace_view in op.tags
    view = bool(op.is_view) or reshapes
    marked = [(i, a) for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    written = () if view else tuple((i, a.name) for i, a in marked)
    base = op._schema.name.split("::")[-1].rstrip("_")
    overwrites = base in _OVERWRITING and bool(written)
    draws = torch.Tag.nondeterministic_seeded in op.tags
    needless, repeatable = base in _NEEDLESS.split(), not (view or draws) or base in _STEADY.split()
    return Operator(
        *(op, str(op), base, written, overwrites, view, reshapes, draws),
        *(_KEPT.get(base, ()), needless, repeatable),
    )


@dataclass(slots=True)
class Event:
    """One operator call on its way to the record: its tensors, and those that it writes to, before it runs."""

    known: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    written: Sequence[Tensor]
    values: Sequence[Value | None] = ()
    inputs: tuple[Input, ...] = ()  # none: the call is not recorded
    followed: bool = False  # whether autograd follows it


class Capture(TorchDispatchMode):
    """Write every differentiable operator call of this thread to a `Record`.

    Args:
        record: where calls go.
        model: gives modules and parameters their names; may be None.
        names: names for other leaves.
        examples: tensors whose first dimension enumerates the examples.
    """

    def __init__(
        self, record: Record, model: nn.Module | None, names: Mapping[str, Tensor], examples: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.record = record
        self.values = Values(record, examples)
        self.scopes = Scopes(model)
        self._saved: dict[int, list[Saved]] = {}
        self._backends = True, True
        self.refused: GradtraceError | None = None  # foreign code that an error passes through may make another of it
        record.called = self.scopes.instances
        record.modules = tuple(n for n in self.scopes.names.values() if n)
        parameters = model.named_parameters(remove_duplicate=False) if model is not None else ()
        for name, tensor in (*parameters, *names.items()):
            self.values.name(name, tensor)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record inside the block; restore every mode, hook and backend flag at its end."""
        with ExitStack() as stack:
            self._backends = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
            stack.callback(_set_backends, *self._backends)
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            _set_backends(self._backends[0], False)
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self.scopes.watching())
            stack.callback(self._close)
            stack.enter_context(self)
            yield

    def _close(self) -> None:
        self.values.open = False
        self._saved.clear()
        take_small_apart(self.record)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and record it if autograd follows one of its arguments."""
        # everything from here to the end of this class runs at every operator call: no generators, few functions
        del types
        known, kwargs = operator(func), kwargs or {}
        try:
            event = self._event(known, args, kwargs)
            if event.written:
                self._keep(event.written)
            result = self._run(known.func, args, kwargs)
            if event.inputs:
                self._record(event, [result] if isinstance(result, Tensor) else list(flat_tensors(result)))
            elif not torch.is_grad_enabled():
                self._note_unfollowed(result)
        except GradtraceError as error:
            self.refused = error
            raise
        return result

    def _event(self, known: Operator, args: Any, kwargs: dict[str, Any]) -> Event:
        """Take a call's arguments apart; what is recorded is saved now, since the operator may overwrite it."""
        tensors: list[Tensor] = []
        template = tuple(_template(args, tensors))
        keywords = dict(zip(kwargs, _template(kwargs.values(), tensors), strict=True)) if kwargs else {}
        event = Event(known, template, keywords, tensors, _written(known, args, kwargs) if known.written else ())
        grad, labelled = torch.is_grad_enabled(), self.record.examples is not None
        if not (labelled or (grad and any(map(_requires_grad, tensors)))):
            return event
        if not all(map(_is_dense, tensors)):
            if grad and any(map(_requires_grad, tensors)):
                raise Unsupported(f"{known.name} works on sparse or nested tensors: gradtrace follows dense ones only")
        elif grad and not labelled and known.base == "detach":
            for tensor in tensors:  # no call, but it tells that autograd follows what is detached
                self.values.seen(tensor)
        else:
            self._look_up(event, grad)
        return event

    def _look_up(self, event: Event, grad: bool) -> None:
        """Find the values of a call's arguments; if there are any, save the arguments."""
        layouts = list(map(layout_of, event.tensors))
        if grad:
            event.values = values = list(map(self.values.lookup, event.tensors, layouts))
        else:
            find = self.values
            event.values = values = [find.seen(t) if t.requires_grad else find.lookup(t) for t in event.tensors]
        if values.count(None) == len(values):
            return
        # what is overwritten by constants is still a result that autograd follows, with nothing behind it
        event.followed = grad and any(v is not None and v.differentiable for v in values)
        if event.known.view:
            saved: Iterable[Saved | Again | None] = repeat(None)
        elif event.known.needless and event.followed:
            saved = map(self._save_if_needed, event.tensors, values)
        else:
            saved = map(self._save, event.tensors)
        if event.known.overwrites:
            values, saved = [None, *values[1:]], chain((None,), map(self._save, event.tensors[1:]))
        event.inputs = tuple(
            [
                Input(v, at.size, at.stride, at.offset, t.dtype, t.device, s)
                for v, at, t, s in zip(values, layouts, event.tensors, saved)  # noqa: B905
            ]
        )

    def _save_if_needed(self, tensor: Tensor, value: Value | None) -> Saved | Again:
        """Save what cannot be computed again."""
        if value is None or value.depth is None or value.depth >= _DEEPEST or tensor.is_complex():
            return self._save(tensor)
        return Again(value)

    def _save(self, tensor: Tensor, *, written: bool = False) -> Saved:
        saved = Saved(tensor, written=written)
        self._saved.setdefault(tensor.untyped_storage()._cdata, []).append(saved)
        return saved

    def _keep(self, written: Sequence[Tensor]) -> None:
        """Copy what was saved of tensors that are about to be overwritten."""
        for tensor in filter(_is_dense, written):
            key = tensor.untyped_storage()._cdata
            there = self._saved.pop(key, None)
            if there is None:
                continue
            at, apart = layout_of(tensor), []
            for saved in there:
                # a recurrent cell's gates lie side by side, each with a version of its own: written to one by one
                if not saved.shares_version(tensor) and disjoint(layout_of(saved.data), at):
                    apart.append(saved)
                else:
                    saved.keep()
            if apart:
                self._saved[key] = apart

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator on the user's own backends: what recording wants in parts (cuDNN's LSTM) comes in parts."""
        _set_backends(*self._backends)
        try:
            return func(*args, **kwargs)
        finally:
            _set_backends(self._backends[0], False)

    def _note_unfollowed(self, result: Any) -> None:
        """Note where a custom function may have made its result: its own operators run without grad."""
        where = self.scopes.here(), source_line()
        for tensor in flat_tensors(result):
            if tensor is not None and _is_dense(tensor):
                self.values.made(tensor, where)

    def _record(self, event: Event, outputs: list[Tensor | None]) -> None:
        """Write a call that has run to the record, with a value for each result."""
        known, calls = event.known, self.record.calls
        if event.followed and event.written:
            _refuse_hidden_writes(event, outputs)
        scopes, source = self.scopes.here(), source_line()
        call = Call(
            len(calls), known.func, known.name, known.base, event.inputs, event.args, event.kwargs, scopes, source
        )
        call.written = _written_positions(event)
        if known.draws or (known.kept and event.followed):
            call.results = self._results(event, outputs)
        values, seq, depth = [], _autograd._get_sequence_nr() - 1, _depth(event)
        for number, out in enumerate(outputs):
            values.append(value := None if out is None else self._result(out, event))
            if out is not None and value is not None:
                value.call, value.seq, value.number = call, seq, number
                value.depth = 0 if call.results and call.results[number] is not None else depth
            if out is not None and out.is_complex():
                call.gives_complex = True
        call.outputs = tuple(values)
        if known.base == LSTM:
            note(self.record, call)
        calls.append(call)

    def _results(self, event: Event, outputs: list[Tensor | None]) -> tuple[Saved | None, ...]:
        """Save random numbers, since running an operator again would draw again, and what autograd saves too."""
        kept = range(len(outputs)) if event.known.draws else event.known.kept
        return tuple(
            self._save(out, written=_among(out, event.written)) if out is not None and i in kept else None
            for i, out in enumerate(outputs)
        )

    def _result(self, out: Tensor, event: Event) -> Value | None:
        """Make the value of a result; None where neither autograd nor example labels go on."""
        if not _is_dense(out):
            raise Unsupported(f"{event.known.name} gives a sparse or nested tensor: gradtrace follows dense ones only")
        written = bool(event.written) and _among(out, event.written)
        kind = out.dtype
        differentiable = event.followed and event.known.base != "detach" and (kind.is_floating_point or kind.is_complex)
        # written to under no_grad: autograd does not notice, the value stays what it was
        unnoticed = written and out.requires_grad and not torch.is_grad_enabled()
        if unnoticed or not (differentiable or self.record.examples is not None):
            return None
        value = self.record.value(out, differentiable=differentiable)
        self.values.place(out, value, writes=written or not _shares(out, event.tensors))
        return value


def _depth(event: Event) -> int | None:
    """Count the operators that have to run to compute a call's results again; None if that is impossible."""
    if not event.known.repeatable:
        return None
    deepest = 0
    for given in event.inputs:
        if type(given.saved) is not Saved:
            depth = given.value.depth if given.value is not None else None
            if depth is None or given.dtype.is_complex:
                return None
            deepest = max(deepest, depth)
    return deepest + 1


def _set_backends(mkldnn: bool, cudnn: bool) -> None:
    # torch.backends' own setters warn, touch more than this flag, or refuse under some test suites
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)


_requires_grad = attrgetter("requires_grad")
_DENSE = torch.strided


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is _DENSE and not tensor.is_nested


def _among(tensor: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is t for t in tensors)  # `in` would compare their scalars


def _shares(tensor: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Tell whether a tensor lies in the storage of one of the others."""
    storage = tensor.untyped_storage()
    for other in tensors:  # noqa: SIM110
        if other.untyped_storage() is storage:
            return True
    return False


def _written(known: Operator, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Give the tensors that an operator writes to."""
    named = (args[i] if i < len(args) else kwargs.get(name) for i, name in known.written)
    return [t for target in named for t in flat_tensors(target) if t is not None]


def _written_positions(event: Event) -> tuple[int, ...]:
    """Say which tensor arguments an operator writes to; batch norm's statistics are not in its schema."""
    if "batch_norm" in event.known.base:
        return tuple(range(1, len(event.tensors)))
    if event.known.reshapes:
        return (0,)
    if not event.written:
        return ()
    return tuple(i for i, t in enumerate(event.tensors) if _among(t, event.written))


def _refuse_hidden_writes(event: Event, outputs: list[Tensor | None]) -> None:
    """Refuse operators that write to a followed tensor without returning it (the _foreach family).

    Raises:
        Unsupported: there is no result whose history could be recorded.
    """
    for tensor, value in zip(event.tensors, event.values, strict=True):
        lost = _among(tensor, event.written) and not _among(tensor, outputs)
        if lost and value is not None and value.differentiable:
            raise Unsupported(f"{event.known.name} writes to tensors that it does not return: write to them one by one")


_SLOTS = [Slot(i) for i in range(32)]  # most calls need no other ones


def _template(arguments: Iterable[Any], tensors: list[Tensor]) -> list[Any]:
    """Replace the tensors among arguments by slots, and list them."""
    template = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            n = len(tensors)
            tensors.append(argument)
            argument = _SLOTS[n] if n < len(_SLOTS) else Slot(n)
        elif type(argument) in (list, tuple):
            argument = type(argument)(_template(argument, tensors))
        template.append(argument)
    return template
