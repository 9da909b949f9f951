"""Record the operator calls of a forward pass, as PyTorch dispatches them.

`Capture` is a dispatch mode: for every operator call it asks `Values` which of the arguments autograd follows, and
writes the call to a `Record`. Nothing outside the `with` block changes: modes, hooks and backend flags are restored
however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _autograd  # type: ignore[attr-defined]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import Unsupported
from .scopes import Scopes, source_line
from .storage import layout_of
from .tape import Call, Input, Record, Saved, Slot, Value, flat_tensors
from .values import Values

# what these write does not depend on what was there
_DRAWING = ("uniform", "normal", "bernoulli", "random", "exponential", "cauchy", "log_normal", "geometric")
_OVERWRITING = {"copy", "fill", "zero", *_DRAWING}


# lazy conjugates and negatives are resolved below autograd, where their consumers would be seen on strangers
_EAGER = {torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default}
_EAGER[torch.ops.aten._neg_view.default] = torch.ops.aten.neg.default


@dataclass(frozen=True)
class Operator:
    """What capture needs to know of an operator, from its schema.

    Attributes:
        base: its bare name, "mul" for aten.mul_.Tensor.
        written: (position, name) of the arguments that it writes to.
        view: whether it moves no data: views, and in-place changes of a tensor's own shape.
        reshapes: whether it is one of the latter (t_, squeeze_).
    """

    base: str
    written: tuple[tuple[int, str], ...]
    view: bool
    reshapes: bool

    @property
    def overwrites(self) -> bool:
        """Whether what its first argument held does not matter."""
        return self.base in _OVERWRITING and bool(self.written)


@cache
def operator(op: Any) -> Operator:
    """Read an operator's schema."""
    reshapes = torch.Tag.inplace_view in op.tags
    view = bool(op.is_view) or reshapes
    marked = [(i, a) for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    written = () if view else tuple((i, a.name) for i, a in marked)
    return Operator(op._schema.name.split("::")[-1].rstrip("_"), written, view, reshapes)


@dataclass(frozen=True)
class Event:
    """One operator call, before it runs: its tensors, their values, and those it will write to."""

    func: Any
    template: tuple[Any, ...]
    keywords: dict[str, Any]
    tensors: list[Tensor]
    values: list[Value | None]
    written: list[Tensor]

    @property
    def known(self) -> Operator:
        return operator(self.func)


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
            _set_backends(False, False)
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self.scopes.watching())
            stack.callback(self._close)
            stack.enter_context(self)
            yield

    def _close(self) -> None:
        self.values.open = False
        self._saved.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and record it if autograd follows one of its arguments."""
        del types
        func = _EAGER.get(func, func)
        event = self._event(func, args, kwargs or {})
        # inputs are saved before the operator runs: it may overwrite them
        inputs = self._inputs(event) if any(v is not None for v in event.values) else ()
        for tensor in filter(_is_dense, event.written):
            for saved in self._saved.pop(tensor.untyped_storage()._cdata, ()):
                saved.keep()
        result = self._run(func, args, kwargs or {})
        outputs = list(flat_tensors(result))
        if inputs and not all(out is None or _is_dense(out) for out in outputs):
            raise Unsupported(f"{func} gives a sparse or nested tensor: gradtrace follows dense ones only")
        if inputs:
            self._record(event, inputs, outputs)
        elif not torch.is_grad_enabled():
            where = self.scopes.here(), source_line()
            for tensor in outputs:
                if tensor is not None and _is_dense(tensor):
                    self.values.made(tensor, where)
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator on the user's own backends: what recording wants in parts (an LSTM) comes here in parts."""
        _set_backends(*self._backends)
        try:
            return func(*args, **kwargs)
        finally:
            _set_backends(False, False)

    def _event(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Event:
        tensors: list[Tensor] = []
        grad, labelled = torch.is_grad_enabled(), self.record.examples is not None
        template, keywords = _template(tuple(args), tensors), {k: _template(v, tensors) for k, v in kwargs.items()}
        named = (args[i] if i < len(args) else kwargs.get(name) for i, name in operator(func).written)
        written = [t for target in named for t in flat_tensors(target) if t is not None]
        values: list[Value | None] = []
        if not all(map(_is_dense, tensors)):
            if grad and any(t.requires_grad for t in tensors):
                raise Unsupported(f"{func} works on sparse or nested tensors: gradtrace follows dense ones only")
        elif grad and not labelled and operator(func).base == "detach":
            for tensor in tensors:  # no call, but it tells that autograd follows what is detached
                self.values.seen(tensor)
        elif labelled or grad:
            values = [self.values.lookup(t) if grad or not t.requires_grad else self.values.seen(t) for t in tensors]
        return Event(func, template, keywords, tensors, values, written)

    def _inputs(self, event: Event) -> tuple[Input, ...]:
        inputs = []
        for i, (tensor, value) in enumerate(zip(event.tensors, event.values, strict=True)):
            lost = event.known.overwrites and i == 0
            saved = None if event.known.view or lost else self._save(tensor)
            at = layout_of(tensor)
            inputs.append(
                Input(None if lost else value, at.size, at.stride, at.offset, tensor.dtype, tensor.device, saved)
            )
        return tuple(inputs)

    def _save(self, tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        self._saved.setdefault(tensor.untyped_storage()._cdata, []).append(saved)
        return saved

    def _record(self, event: Event, inputs: tuple[Input, ...], outputs: list[Tensor | None]) -> None:
        """Write a call that has run to the record, with a value for each result."""
        # what is overwritten by constants is still a result that autograd follows, with nothing behind it
        followed = torch.is_grad_enabled() and any(v is not None and v.differentiable for v in event.values)
        if followed:
            _refuse_hidden_writes(event, outputs)
        call = Call(
            index=len(self.record.calls),
            op=event.func,
            name=str(event.func),
            base=event.known.base,
            inputs=inputs,
            args=event.template,
            kwargs=event.keywords,
            scopes=self.scopes.here(),
            source=source_line(),
            written=_written_positions(event),
            gives_complex=any(out is not None and out.is_complex() for out in outputs),
        )
        if torch.Tag.nondeterministic_seeded in event.func.tags:  # running it again would draw again
            call.results = tuple(self._save(out) if out is not None else None for out in outputs)
        seq = _autograd._get_sequence_nr() - 1
        storages = {t.untyped_storage()._cdata for t in event.tensors}
        call.outputs = tuple(self._result(out, event, followed) if out is not None else None for out in outputs)
        for out, value in zip(outputs, call.outputs, strict=True):
            if out is not None and value is not None:
                value.call, value.seq = call, seq
                written = any(out is w for w in event.written)
                self.values.place(out, value, writes=written or out.untyped_storage()._cdata not in storages)
        self.record.calls.append(call)

    def _result(self, out: Tensor, event: Event, followed: bool) -> Value | None:
        """Make the value of a result; None where neither autograd nor example labels go on."""
        differentiable = followed and event.known.base != "detach" and (out.is_floating_point() or out.is_complex())
        # written to under no_grad: autograd does not notice, the value stays what it was
        unnoticed = out.requires_grad and not torch.is_grad_enabled() and any(out is w for w in event.written)
        if unnoticed or not (differentiable or self.record.examples is not None):
            return None
        return self.record.value(out, differentiable=differentiable)


def _set_backends(mkldnn: bool, cudnn: bool) -> None:
    # torch.backends' own setters warn, touch more than this flag, or refuse under some test suites
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _written_positions(event: Event) -> tuple[int, ...]:
    """Say which tensor arguments an operator writes to; batch norm's statistics are not in its schema."""
    if "batch_norm" in event.known.base:
        return tuple(range(1, len(event.tensors)))
    if event.known.reshapes:
        return (0,)
    return tuple(i for i, t in enumerate(event.tensors) if any(t is w for w in event.written))


def _refuse_hidden_writes(event: Event, outputs: list[Tensor | None]) -> None:
    """Refuse operators that write to a followed tensor without returning it (the _foreach family).

    Raises:
        Unsupported: there is no result whose history could be recorded.
    """
    for tensor, value in zip(event.tensors, event.values, strict=True):
        lost = any(tensor is w for w in event.written) and not any(tensor is o for o in outputs)
        if lost and value is not None and value.differentiable:
            raise Unsupported(f"{event.func} writes to tensors that it does not return: write to them one by one")


def _template(argument: Any, tensors: list[Tensor]) -> Any:
    """Replace the tensors of an argument by slots, and list them."""
    if isinstance(argument, Tensor):
        tensors.append(argument)
        return Slot(len(tensors) - 1)
    if type(argument) in (list, tuple):
        return type(argument)(_template(item, tensors) for item in argument)
    return argument
