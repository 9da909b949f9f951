"""Record the operator calls of a forward pass, as PyTorch dispatches them.

`Capture` is a dispatch mode: for every operator call it asks `Values` which of the arguments autograd follows, and
writes the call to a `Record`. Nothing outside the `with` block changes: modes, hooks and backend flags are restored
however it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily

from ..errors import GradtraceError, Unsupported
from .constants import Constants
from .fused_recurrent import FUSED, layers_as_one, note, random_state, take_small_apart
from .identity import Values
from .layouts import Layout
from .operators import DEEPEST, FACTORIES, Operator, operator
from .process_state import attention_in_parts, pushed
from .ranks import FROM_ONE, INSIDE_DTENSOR, Exchanges, Parts, is_fully_sharded, is_sharded, is_the_programs, waited
from .record import HERE, Again, Call, Cut, Input, Record, Saved, Slot, Value, flat_tensors
from .scopes import Scopes, source_line
from .storage import Lazies, Saving, layout_of, version_of
from .strangers import is_dense, is_plain, refuse_wrappers


@dataclass(slots=True)
class Event:
    """One operator call on its way to the record: its tensors, and those that it writes to, before it runs.

    Attributes:
        values: of its tensors, where autograd follows the call; `inputs` hold them.
        marks: its arguments as those of a constant, where one of them says something about examples.
    """

    known: Operator
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    written: Sequence[Tensor]
    values: Sequence[Value | None] = ()
    inputs: tuple[Input, ...] = ()
    marks: tuple[Input, ...] = ()

    @property
    def followed(self) -> bool:
        """Whether autograd follows it, and it is recorded."""
        return bool(self.inputs)


class Capture(TorchDispatchMode):
    """Write every differentiable operator call of this thread to a `Record`.

    Args:
        record: where calls go.
        model: gives modules and parameters their names; may be None.
        names: names for other leaves.
        examples: tensors whose first dimension enumerates the examples.

    Attributes:
        changes: whether operators may run in another form, which rounds differently.
    """

    changes = True

    def __init__(
        self, record: Record, model: nn.Module | None, names: Mapping[str, Tensor], examples: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.record = record
        refuse_wrappers(examples, "one of the examples")
        self._saving, self._lazies = Saving(), Lazies()
        self._parts, self._exchanges = Parts(model), Exchanges()
        self.values = Values(record, self._saving, self._parts)
        self.scopes = Scopes(model, without_cudnn=self.changes)
        self.refused: Exception | None = None  # foreign code that an error passes through may make another of it
        record.called = self.scopes.instances
        record.modules = tuple(n for n in self.scopes.names.values() if n)
        parameters = model.named_parameters(remove_duplicate=False) if model is not None else ()
        record.reduces = self._sharded = is_fully_sharded(model)
        for name, tensor in (*parameters, *names.items()):
            if tensor.requires_grad and is_sharded(tensor):
                self.values.part(name, tensor)
                continue
            if tensor.requires_grad and not nn.parameter.is_lazy(tensor):
                refuse_wrappers((tensor,), f"the parameter {name!r}")
            if self._sharded:
                self._copy_whole((tensor,))
            self.values.name(name, tensor)
        self.constants = Constants(record, self.values, examples) if examples else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record inside the block; nothing of the process is changed after its end, however it ends."""
        with ExitStack() as stack:
            if self.changes:
                stack.enter_context(attention_in_parts())
                stack.enter_context(layers_as_one())
            stack.enter_context(self.scopes.watching())
            stack.callback(self._close)
            stack.enter_context(pushed(self))
            yield

    def _close(self) -> None:
        self.values.close()
        self._saving.close()
        if self.constants is not None:
            self.constants.close()
        take_small_apart(self.record)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and record it if autograd follows one of its arguments."""
        # everything from here to the end of this class runs at every operator call: no generators, few functions
        del types
        known, kwargs = operator(func), kwargs or {}
        if known.asks or not self.values.open:  # the block was left in another thread, whose stack this is not
            return known.func(*args, **kwargs)
        try:
            event = self._before(known, args, kwargs)
            result = known.func(*args, **kwargs)
            self._after(event, result)
        except GradtraceError as error:
            self.refused = error
            raise
        return result

    def whole(self, op: Any, args: tuple[Any, ...]) -> Any:
        """Run and record as one call what PyTorch runs as many operators, above autograd."""
        drawn = random_state(args)
        with _pop_mode_temporarily():
            results = self.__torch_dispatch__(op, (), args)
        if self.values.open:
            call = self.record.calls[-1]
            for value, out in zip(call.outputs, results, strict=True):
                assert value is not None
                value.seq, value.number = out.grad_fn._sequence_nr(), out.output_nr
            if drawn is not None:
                call.results = (*call.results, Saved.own(drawn))
        return results

    def _before(self, known: Operator, args: Any, kwargs: dict[str, Any]) -> Event:
        """Take a call's arguments apart, and copy what was saved of those that it will overwrite."""
        event = self._event(known, args, kwargs)
        if event.written:
            self._overwrite(event)
        return event

    def _after(self, event: Event, result: Any) -> None:
        """Record a call that has run, if autograd follows one of its arguments."""
        known = event.known
        outputs: list[Tensor | None] = [result] if isinstance(result, Tensor) else list(flat_tensors(result))
        if known.eager or (known.view and self._lazies):
            self._note_lazy(event, outputs)
        call = self._record(event, outputs) if event.inputs else None
        if known.exchanges or self._exchanges:
            self._note_exchange(event, outputs)
        if self.constants is not None:
            self._note_constants(event, outputs, call, self.constants)
        if known.foreign and not known.exchanges and not torch.is_grad_enabled():
            self._wait(event, outputs)
        if call is None and not torch.is_grad_enabled():
            self._note_unfollowed(outputs)

    def _note_exchange(self, event: Event, outputs: list[Tensor | None]) -> None:
        """Note what comes from other ranks, and where it meets what is followed."""
        known, made = event.known, [*(out for out in outputs if out is not None), *event.written]
        where = self._exchanges.found(event.tensors)
        if known.exchanges and where is None and is_the_programs():
            where = f"{known.name}, with other ranks ({source_line()})"
            if known.base in FROM_ONE and not self.record.pipelined:
                self.record.pipelined = where
        if where is None or known.base in FACTORIES:
            return
        if event.followed and where not in self.record.exchanged:
            self.record.exchanged.append(where)
        self._exchanges.note(where, made)

    def _event(self, known: Operator, args: Any, kwargs: dict[str, Any]) -> Event:
        """Take a call's arguments apart; what is recorded is saved now, since the operator may overwrite it."""
        tensors: list[Tensor] = []
        template = tuple(_template(args, tensors))
        keywords = dict(zip(kwargs, _template(kwargs.values(), tensors), strict=True)) if kwargs else {}
        event = Event(known, template, keywords, tensors, _written(known, args, kwargs) if known.written else ())
        if self._sharded:
            self._copy_whole(tensors)
        if torch.is_grad_enabled() and any(map(_requires_grad, tensors)):
            if any(map(is_sharded, tensors)):
                raise Unsupported(f"an argument of {known.name} {INSIDE_DTENSOR}")
            refuse_wrappers(self._waited(tensors), f"an argument of {known.name}")
            if known.base == "detach":
                for tensor in tensors:  # no call, but it tells that autograd follows what is detached
                    self._note_cut(known, self.values.seen(tensor))
            elif known.base not in FACTORIES and not known.exchanges:
                self._look_up(event)
        elif not torch.is_grad_enabled():
            for tensor in filter(_requires_grad, tensors):
                self.values.meet(tensor)
                self._note_cut(known, self.values.peek(tensor))
        if self.constants is not None and not known.exchanges:
            self._mark(event, self.constants)
        return event

    def _copy_whole(self, tensors: Iterable[Tensor]) -> None:
        """Copy parameters that FSDP has put in place for now, frozen ones too."""
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter) and not is_sharded(tensor):
                self._saving.copy(tensor)

    def _waited(self, tensors: list[Tensor]) -> list[Tensor]:
        """Give what asynchronous collectives have left, where there may be some."""
        return list(map(waited, tensors)) if self._exchanges else tensors

    def _note_cut(self, known: Operator, value: Value | None) -> None:
        """Note that autograd does not follow what becomes of a value here."""
        if value is not None:
            scopes = self.scopes.here()
            module = str(scopes[-1]) if scopes else ""
            self.record.cuts.append(Cut(value.id, known.name, module, source_line()))

    def _look_up(self, event: Event) -> None:
        """Find the values of the arguments of a call that autograd follows, and save the arguments."""
        layouts = list(map(layout_of, event.tensors))
        event.values = values = list(map(self.values.lookup, event.tensors, layouts))
        tensors = self._waited(event.tensors)
        if event.known.view:
            saved: Iterable[Saved | Again | None] = repeat(None)
        elif event.known.needless:
            saved = map(self._save_if_needed, tensors, values)
        else:
            saved = map(self._saving.save, tensors)
        if event.known.overwrites:
            values, saved = [None, *values[1:]], chain((None,), map(self._saving.save, tensors[1:]))
        event.inputs = tuple(
            [
                Input(v, at.size, at.stride, at.offset, t.dtype, HERE, s)
                for v, at, t, s in zip(values, layouts, event.tensors, saved)  # noqa: B905
            ]
        )

    def _mark(self, event: Event, constants: Constants) -> None:
        """Find what a call's arguments say about examples, and save those that are not saved yet."""
        tensors, skipped = event.tensors, 1 if event.known.overwrites else 0
        marks = [constants.lookup(t) if n >= skipped and is_plain(t) else None for n, t in enumerate(tensors)]
        if marks.count(None) == len(marks):
            return
        if event.inputs:
            pairs = list(zip(event.inputs, marks, strict=True))
            for given, mark in pairs:
                given.constant = mark if given.value is None else None
            event.marks = tuple([Input(m, i.shape, i.stride, i.offset, i.dtype, HERE, i.saved) for i, m in pairs])
            return
        made = []
        for tensor, mark in zip(tensors, marks, strict=True):
            at = layout_of(tensor) if is_dense(tensor) else Layout(tuple(tensor.shape), (), 0)
            made.append(Input(mark, *at, tensor.dtype, HERE, self._save_mark(event.known, tensor)))
        event.marks = tuple(made)

    def _save_mark(self, known: Operator, tensor: Tensor) -> Saved | None:
        return self._saving.save(tensor) if is_plain(tensor) and not known.view else None

    def _save_if_needed(self, tensor: Tensor, value: Value | None) -> Saved | Again:
        """Save what cannot be computed again."""
        if value is None or value.depth is None or value.depth >= DEEPEST or tensor.is_complex():
            return self._saving.save(tensor)
        return Again(value)

    def _overwrite(self, event: Event) -> None:
        """Copy what was saved of tensors that are about to be overwritten, whether autograd notices or not."""
        for tensor in filter(is_dense, event.written):
            if self._lazies:
                self._lazies.refuse_write(event.known.name, tensor)
            self.values.rewritten(tensor, followed=event.followed)
            self._saving.overwrite(tensor)

    def _note_lazy(self, event: Event, outputs: list[Tensor | None]) -> None:
        """Note what is made solid though it would be a view, and views of it."""
        tensors = [t for t in (event.tensors[0], *outputs) if t is not None and is_plain(t)]
        if len(tensors) > 1:
            (self._lazies.note if event.known.eager else self._lazies.view)(tensors[0], tensors[1:])

    def _wait(self, event: Event, results: list[Tensor | None]) -> None:
        """Keep a library's operator, if autograd follows a function around it that PyTorch made, not the call."""
        known, outputs = event.known, [t for t in results if t is not None]
        if event.written or not any(map(_requires_grad, event.tensors)):
            return
        if not all(map(is_dense, (*event.tensors, *outputs))):
            return
        inputs = [Input(None, *layout_of(t), t.dtype, HERE, self._saving.save(t)) for t in event.tensors]
        call = Call(0, known.func, known.name, known.base, tuple(inputs), event.args, event.kwargs, (), "")
        call.gives_complex = any(out.is_complex() for out in outputs)
        for out in outputs:
            self.values.wait(call, event.tensors, out)

    def _note_unfollowed(self, outputs: list[Tensor | None]) -> None:
        """Note where a custom function may have made its result: its own operators run without grad."""
        where = self.scopes.here(), source_line()
        for tensor in outputs:
            if tensor is not None and is_dense(tensor):
                self.values.made(tensor, where)

    def _record(self, event: Event, outputs: list[Tensor | None]) -> Call:
        """Write a call that has run to the record, with a value for each result that autograd follows."""
        known, calls = event.known, self.record.calls
        if event.written:
            _refuse_hidden_writes(event, outputs)
        call = self._call(event, event.inputs, len(calls))
        if known.draws or known.kept:
            call.results = self._results(event, outputs)
        values, seq, depth = [], self.values.last_node(), _depth(event)
        for number, out in enumerate(outputs):
            values.append(value := None if out is None else self._result(out, event))
            if out is not None and value is not None:
                value.call, value.seq, value.number = call, seq, number
                value.depth = 0 if call.results and call.results[number] is not None else depth
            if out is not None and out.is_complex():
                call.gives_complex = True
        call.outputs = tuple(values)
        if known.overwrites and (lost := event.values[0]) is not None:
            self.record.overwritten.append((lost, call))
        if known.base in FUSED:
            note(self.record, call)
        calls.append(call)
        return call

    def _call(self, event: Event, inputs: tuple[Input, ...], index: int) -> Call:
        known, scopes, source = event.known, self.scopes.here(), source_line()
        call = Call(index, known.func, known.name, known.base, inputs, event.args, event.kwargs, scopes, source)
        call.written = _written_positions(event)
        return call

    def _note_constants(
        self, event: Event, outputs: list[Tensor | None], call: Call | None, constants: Constants
    ) -> None:
        """Write a call to the record's constants, with a value for each result that autograd does not follow."""
        if not event.marks:
            for tensor in filter(is_plain, () if event.followed else event.written):
                constants.wipe(tensor)  # with what says nothing about examples
            return
        followed = {n for n, y in enumerate(call.outputs) if y is not None} if call is not None else ()
        values = [
            None if out is None or number in followed else self._constant(out, event, constants)
            for number, out in enumerate(outputs)
        ]
        if values.count(None) == len(values):
            return
        made = self._call(event, event.marks, len(self.record.constants))
        made.results = self._results(event, outputs) if event.known.draws else ()
        made.gives_complex = any(out is not None and out.is_complex() for out in outputs)
        made.outputs = tuple(values)
        for value in filter(None, values):
            value.call = made
        self.record.constants.append(made)

    def _constant(self, out: Tensor, event: Event, constants: Constants) -> Value | None:
        """Make the constant of a result."""
        # written to under no_grad: autograd does not notice, the value stays what it was
        if out.requires_grad or not is_plain(out):
            return None
        value = self.record.value(out, differentiable=False)
        of, version = _lies(out, event, list(filter(is_plain, event.tensors)))
        constants.note(out, value, writes=of is None, version=version)
        return value

    def _results(self, event: Event, outputs: list[Tensor | None]) -> tuple[Saved | None, ...]:
        """Save random numbers, since running an operator again would draw again, and what autograd saves too."""
        kept = range(len(outputs)) if event.known.draws else event.known.kept
        return tuple(
            self._saving.save(out, written=_among(out, event.written)) if out is not None and i in kept else None
            for i, out in enumerate(outputs)
        )

    def _result(self, out: Tensor, event: Event) -> Value | None:
        """Make the value of a result; None where autograd does not go on."""
        if not is_dense(out):
            raise Unsupported(f"{event.known.name} gives a sparse or nested tensor: gradtrace follows dense ones only")
        kind = out.dtype
        if not (kind.is_floating_point or kind.is_complex):
            return None
        value = self.record.value(out)
        if event.known.view:
            of, version = _lies(out, event, event.tensors)
        else:  # of what is unsafely split or viewed autograd knows no base
            of, version = None, version_of(out) + (bool(event.written) and _among(out, event.written))
        self.values.place(out, value, writes=of is None, version=version, view_of=of)
        return value


def _lies(out: Tensor, event: Event, tensors: Sequence[Tensor]) -> tuple[Tensor | None, int]:
    """Tell of which argument a result is a view, if it is, and which version it will have."""
    written = bool(event.written) and _among(out, event.written)
    of = None if written else _sharing(out, tensors)
    # inside a dispatch a view has a version of its own still, and what is written to its old one
    return of, version_of(event.tensors[0]) if of is not None and event.known.view else version_of(out) + written


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


_requires_grad = attrgetter("requires_grad")


def _among(tensor: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is t for t in tensors)  # `in` would compare their scalars


def _sharing(tensor: Tensor, tensors: Sequence[Tensor]) -> Tensor | None:
    """Find the one of the others in whose storage a tensor lies."""
    storage = tensor.untyped_storage()
    for other in tensors:
        if other.untyped_storage() is storage:
            return other
    return None


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
