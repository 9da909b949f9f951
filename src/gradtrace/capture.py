"""Record the operator calls of a forward pass, as PyTorch dispatches them.

`Capture` is a dispatch mode. A storage is a cell: a write makes a new version of it, and an alias that is
read later is an index map of that version. What autograd would not follow (detach, no_grad, integers) is
not followed here either, because the tensors themselves say so (`requires_grad`, `is_leaf`).
Nothing outside the `with` block changes: modes, hooks and backend flags are restored however it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from .custom import CustomFunction, CustomNode, name_of, refuse_reentrant
from .errors import NotOnTape, Unsupported
from .storage import Cell, alias, disjoint, layout_of, overlay
from .structure import Layout
from .tape import Call, Input, Record, Saved, Scope, Slot, Value, flat_tensors

_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_blocks: ContextVar[tuple[str, ...]] = ContextVar("gradtrace_blocks", default=())
_active: ContextVar[Capture | None] = ContextVar("gradtrace_capture", default=None)


@contextmanager
def component(name: str) -> Iterator[None]:
    """Name the operator calls made inside the block, as if they were a module's.

    >>> with component("gate"):
    ...     pass
    """
    capture = _active.get()
    token = _blocks.set((*_blocks.get(), name))
    if capture is not None:
        capture.enter(name)
    try:
        yield
    finally:
        _blocks.reset(token)
        if capture is not None:
            capture.leave()


@cache
def _written(op: Any) -> tuple[tuple[int, str], ...]:
    """Give (position, name) of the arguments that an operator writes to."""
    arguments = op._schema.arguments
    return tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


@cache
def _is_view(op: Any) -> bool:
    """Tell whether an operator moves no data: views, and in-place changes of a tensor's own shape."""
    return bool(op.is_view) or torch.Tag.inplace_view in op.tags


@cache
def _base(op: Any) -> str:
    return op._schema.name.split("::")[-1].rstrip("_")


def source_line() -> str:
    """Give "file:line" of the innermost frame outside torch and gradtrace."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_INTERNAL) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


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
        self._cells: dict[int, Cell] = {}
        self._saved: dict[int, list[Saved]] = {}
        self._leaves: dict[int, tuple[Tensor, Value]] = {}
        self._modules = {id(m): n for n, m in model.named_modules()} if model is not None else {}
        record.modules = tuple(n for n in self._modules.values() if n)
        self._scopes: list[Scope] = []
        self._instances: dict[str, int] = {}
        self._customs: dict[Any, Call] = {}
        self._made: dict[int, tuple[tuple[Scope, ...], str]] = {}
        self._open = True
        if model is not None:
            for name, parameter in model.named_parameters(remove_duplicate=False):
                self._name(name, parameter)
        for name, tensor in names.items():
            self._name(name, tensor)
        self._label(examples)

    # -- set-up ---------------------------------------------------------------------------------

    def _name(self, name: str, tensor: Tensor) -> None:
        if not (tensor.requires_grad and tensor.is_leaf):
            self.record.frozen.add(name)
        elif id(tensor) in self._leaves:
            self.record.aliases[name] = str(self._leaves[id(tensor)][1].name)
        else:
            self._leaf(tensor, name)

    def _label(self, examples: Sequence[Tensor]) -> None:
        for tensor in examples:
            if tensor.requires_grad and tensor.is_leaf:
                value = self._leaf(tensor)
            else:
                value = self.record.value(tensor, differentiable=False)
                self._cell(tensor).write(layout_of(tensor), value)
            self.record.example_values.append(value)
            self.record.examples = tensor.shape[0]
        self._examples = list(examples)  # alive as long as their cells are looked up

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record inside the block; restore every mode, hook and backend flag at its end."""
        with ExitStack() as stack:
            # torch.backends' own setters warn, touch more than this flag, or refuse under some test suites
            stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            stack.callback(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled())
            torch._C._set_mkldnn_enabled(False)
            torch._C._set_cudnn_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.callback(register_module_forward_pre_hook(self._before).remove)
            stack.callback(register_module_forward_hook(self._after, always_call=True).remove)
            token = _active.set(self)
            stack.callback(_active.reset, token)
            for name in _blocks.get():
                self.enter(name)
            stack.callback(self._close)
            stack.enter_context(self)
            yield

    def _close(self) -> None:
        self._open = False
        self._saved.clear()
        self._scopes.clear()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        del inputs
        self.enter(self._modules.get(id(module), type(module).__name__))

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs, output
        self.leave()

    def enter(self, name: str) -> None:
        """Begin a module call or a component block."""
        self._instances[name] = self._instances.get(name, 0) + 1
        self._scopes.append(Scope(name, self._instances[name]))

    def leave(self) -> None:
        """End the innermost one."""
        if self._scopes:
            self._scopes.pop()

    def _scope(self) -> tuple[Scope, ...]:
        return tuple(s for s in self._scopes if s.name)

    # -- values ---------------------------------------------------------------------------------

    def _leaf(self, tensor: Tensor, name: str | None = None) -> Value:
        known = self._leaves.get(id(tensor))
        if known is None:
            name = name or f"leaf{len(self._leaves)}"
            known = tensor, self.record.value(tensor, name=name)
            self._leaves[id(tensor)] = known
            self.record.leaves[name] = known[1]
        return known[1]

    def _cell(self, tensor: Tensor) -> Cell:
        if tensor.layout != torch.strided or tensor.is_nested:
            raise Unsupported(f"gradtrace follows dense tensors only, not {tensor.layout} of {tuple(tensor.shape)}")
        storage = tensor.untyped_storage()
        cell = self._cells.get(storage._cdata)
        if cell is None or cell.ref.expired():
            cell = self._cells[storage._cdata] = Cell(StorageWeakRef(storage))
        return cell

    def lookup(self, tensor: Tensor) -> Value | None:
        """Find the value that a tensor stands for at this moment; None if autograd does not follow it.

        Raises:
            NotOnTape: autograd follows it, but the tape has not seen how it was made.
        """
        if tensor.requires_grad and tensor.is_leaf and not tensor.is_complex():
            return self._leaf(tensor) if self._open else self._known_leaf(tensor)
        if not tensor.requires_grad and self.record.examples is None:
            return None
        if tensor.is_complex() and tensor.requires_grad:
            raise Unsupported(f"a complex tensor of shape {tuple(tensor.shape)}: gradtrace follows real ones only")
        if isinstance(tensor.grad_fn, CustomNode):
            return self._custom(tensor, tensor.grad_fn)
        cell = self._cell(tensor)
        at = layout_of(tensor)
        found = [v for v in cell.views.get(at, ()) if v.differentiable == tensor.requires_grad]
        if len(found) == 1:
            return found[0]
        if found:
            seq = tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else -1
            return next((v for v in found if v.seq == seq), found[0])
        if any(v.differentiable == tensor.requires_grad and not disjoint(at, a) for a, v in cell.writes):
            return self._alias(tensor, cell, at)
        if tensor.requires_grad:
            raise NotOnTape(_unseen(tensor))
        return None

    def _custom(self, tensor: Tensor, node: Any) -> Value:
        """Find, or put on the tape, the call of the custom function that made a tensor."""
        if node not in self._customs and not self._open:
            raise NotOnTape(_unseen(tensor))
        scopes, source = self._made.get(tensor.untyped_storage()._cdata, ((), ""))
        waiting = [node]
        while waiting:  # functions of functions, whose results no operator has used
            unknown = [f for f, _ in waiting[-1].next_functions if isinstance(f, CustomNode) and f not in self._customs]
            if unknown:
                waiting += unknown
            elif (last := waiting.pop()) not in self._customs:
                self._customs[last] = self._custom_call(last, scopes, source)
        call = self._customs[node]
        call.op.results[tensor.output_nr] = tensor.detach()
        return call.outputs[tensor.output_nr]

    def _custom_call(self, node: Any, scopes: tuple[Scope, ...], source: str) -> Call:
        refuse_reentrant(node)
        op = CustomFunction(node)
        values = [self._behind(fn, number) for fn, number in node.next_functions if fn is not None]
        inputs = tuple(Input(v, v.shape, (), 0, v.dtype, op.results[0].device, None) for v in values)
        slots = tuple(Slot(i) for i in range(len(inputs)))
        name = f"autograd.{name_of(node)}"
        call = Call(len(self.record.calls), op, name, name, inputs, slots, {}, scopes, source)
        call.outputs = tuple(self.record.value(result) for result in op.results)
        for value in call.outputs:
            value.call = call
        self.record.calls.append(call)
        return call

    def _behind(self, node: Any, number: int) -> Value:
        """Find the value that an autograd node made as its result `number`."""
        if hasattr(node, "variable"):
            return self._leaf(node.variable)
        if node in self._customs:
            return self._customs[node].outputs[number]
        for call in reversed(self.record.calls):
            value = call.outputs[number] if number < len(call.outputs) else None
            if value is not None and value.seq == node._sequence_nr():
                return value
        raise NotOnTape(f"an argument of a custom autograd.Function comes from {node.name()}, which was not recorded")

    def _known_leaf(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._leaves:
            raise NotOnTape(f"this leaf tensor of shape {tuple(tensor.shape)} was not used in the recorded code")
        return self._leaves[id(tensor)][1]

    def _alias(self, tensor: Tensor, cell: Cell, at: Layout) -> Value:
        """Read a storage through an alias that was made before the last write to it."""
        numel = tensor.untyped_storage().nbytes() // tensor.element_size()
        flat = Layout((numel,), (1,), 0)
        if [a for a, _ in cell.writes] != [flat]:
            parts = [(a, v) for a, v in cell.writes if v.differentiable == tensor.requires_grad]
            layouts = tuple(a for a, _ in parts)
            slots = [Slot(i) for i in range(len(parts))]
            whole = self._pseudo(overlay, (slots, layouts, numel), [v for _, v in parts], (numel,), tensor)
            cell.writes = [(flat, whole)]
        value = self._pseudo(alias, (Slot(0), at), [cell.writes[0][1]], at.size, tensor)
        cell.views.setdefault(at, []).append(value)
        return value

    def _pseudo(
        self, op: Callable[..., Any], args: tuple[Any, ...], values: list[Value], shape: tuple[int, ...], like: Tensor
    ) -> Value:
        """Add a call that no program made: it reads a storage after writes."""
        inputs = tuple(Input(v, v.shape, (), 0, like.dtype, like.device, None) for v in values)
        name = f"gradtrace.{op.__name__}"
        call = Call(len(self.record.calls), op, name, name, inputs, args, {}, (), source_line())
        value = self.record.value(like, differentiable=like.requires_grad)
        value.shape, value.call = shape, call
        call.outputs = (value,)
        self.record.calls.append(call)
        return value

    # -- operator calls -------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        written = [] if _is_view(func) else [_argument(args, kwargs, w) for w in _written(func)]
        tensors: list[Tensor] = []
        templates = _template(tuple(args), tensors), {k: _template(v, tensors) for k, v in kwargs.items()}
        live = self._live(func, tensors)
        inputs = self._inputs(func, tensors, live) if any(v is not None for v in live) else ()
        for tensor in (t for w in written for t in (w if isinstance(w, (list, tuple)) else [w])):
            if isinstance(tensor, Tensor):
                self._keep(tensor)
        result = func(*args, **kwargs)
        if inputs:
            self._record(func, inputs, templates, tensors, live, written, result)
        elif not torch.is_grad_enabled():  # perhaps inside a custom function
            where = self._scope(), source_line()
            self._made.update({t.untyped_storage()._cdata: where for t in flat_tensors(result) if t is not None})
        return result

    def _live(self, func: Any, tensors: list[Tensor]) -> list[Value | None]:
        """Find the values among an operator's tensor arguments."""
        if not torch.is_grad_enabled() and self.record.examples is None:
            return []
        if _base(func) == "detach" and self.record.examples is None:
            return []
        grad = torch.is_grad_enabled()
        return [self.lookup(t) if grad or not t.requires_grad else None for t in tensors]

    def _inputs(self, func: Any, tensors: list[Tensor], live: list[Value | None]) -> tuple[Input, ...]:
        overwritten = _base(func) in _OVERWRITING
        inputs = []
        for i, (tensor, value) in enumerate(zip(tensors, live, strict=True)):
            saved = None if _is_view(func) or (overwritten and i == 0) else self._save(tensor)
            value = None if overwritten and i == 0 else value
            at = layout_of(tensor)
            inputs.append(Input(value, at.size, at.stride, at.offset, tensor.dtype, tensor.device, saved))
        return tuple(inputs)

    def _save(self, tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        self._saved.setdefault(tensor.untyped_storage()._cdata, []).append(saved)
        return saved

    def _keep(self, tensor: Tensor) -> None:
        """Copy what the tape holds of a storage that is about to be overwritten."""
        for saved in self._saved.pop(tensor.untyped_storage()._cdata, ()):
            saved.keep()

    def _record(
        self,
        func: Any,
        inputs: tuple[Input, ...],
        templates: Any,
        tensors: list[Tensor],
        live: list[Value | None],
        written: list[Any],
        result: Any,
    ) -> None:
        grad = torch.is_grad_enabled()
        # what is overwritten by constants is still a result that autograd follows, with nothing behind it
        followed = grad and any(v is not None and v.differentiable for v in live)
        outputs = list(flat_tensors(result))
        inplace = any(w is o for w in written for o in outputs if o is not None)
        _refuse_hidden_writes(func, tensors, live, written, outputs)
        call = Call(
            len(self.record.calls), func, str(func), _base(func), inputs, *templates,
            self._scope(), source_line(), inplace, _positions(func, tensors, written),
        )  # fmt: skip
        seq = torch.autograd._get_sequence_nr() - 1
        arguments = {t.untyped_storage()._cdata for t in tensors}
        values: list[Value | None] = []
        for out in outputs:
            real = out is not None and out.is_floating_point()
            untouched = out is not None and inplace and out.requires_grad and not grad  # by autograd's lights
            if out is None or untouched or not (followed and real or self.record.examples is not None):
                values.append(None)
                continue
            value = self.record.value(out, differentiable=followed and real)
            value.call, value.seq = call, seq
            values.append(value)
            self._place(out, value, inplace, out.untyped_storage()._cdata in arguments)
        call.outputs = tuple(values)
        self.record.calls.append(call)

    def _place(self, tensor: Tensor, value: Value, inplace: bool, aliasing: bool) -> None:
        """Note which storage holds a new value."""
        cell, at = self._cell(tensor), layout_of(tensor)
        if aliasing and not inplace:
            cell.views.setdefault(at, []).append(value)
        else:
            cell.write(at, value)


_OVERWRITING = {"copy", "fill", "zero", "uniform", "normal", "bernoulli", "random"}


def _positions(func: Any, tensors: list[Tensor], written: list[Any]) -> tuple[int, ...]:
    """Say which tensor arguments an operator writes to; batch norm's statistics are not in its schema."""
    if "batch_norm" in _base(func):
        return tuple(range(1, len(tensors)))
    return tuple(i for i, t in enumerate(tensors) if any(t is w for w in written))


def _refuse_hidden_writes(
    func: Any, tensors: list[Tensor], live: list[Value | None], written: list[Any], outputs: list[Tensor | None]
) -> None:
    """Refuse operators that write to a followed tensor without returning it (the _foreach family).

    Raises:
        Unsupported: there is no result whose history could be recorded.
    """
    targets = [t for w in written for t in (w if isinstance(w, (list, tuple)) else [w])]
    for tensor, value in zip(tensors, live, strict=False):
        lost = any(tensor is t for t in targets) and not any(tensor is o for o in outputs)
        if lost and value is not None and value.differentiable and torch.is_grad_enabled():
            raise Unsupported(f"{func} writes to tensors that it does not return: write to them one by one")


def _argument(args: Any, kwargs: Any, which: tuple[int, str]) -> Any:
    return args[which[0]] if which[0] < len(args) else kwargs.get(which[1])


def _template(argument: Any, tensors: list[Tensor]) -> Any:
    """Replace the tensors of an argument by slots, and list them."""
    if isinstance(argument, Tensor):
        tensors.append(argument)
        return Slot(len(tensors) - 1)
    if type(argument) in (list, tuple):
        return type(argument)(_template(item, tensors) for item in argument)
    return argument


def _unseen(tensor: Tensor) -> str:
    """Explain why a tensor with a history is not on the tape."""
    node = tensor.grad_fn
    what = f"a tensor of shape {tuple(tensor.shape)}"
    made = type(node).__name__ if node is not None else "unknown"
    return (
        f"{what} has a history (grad_fn={made}) that was not recorded: "
        "compute it inside `with record(...)`, or detach() it to make it a constant"
    )
