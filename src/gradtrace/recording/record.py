"""The tape: operator calls in the order in which they were recorded, and the values between them.

A `Value` is one tensor at one moment (an in-place write makes a new one). A `Call` turned values into
values. `Saved` holds a tensor as it was, and refuses to hand it out if somebody has changed it since.
The numbers on a tape are those of one forward pass; it says nothing about other inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NotKept, NotOnTape, StaleTensor, Unsupported


@dataclass(eq=False, slots=True)
class Value:
    """One tensor at one moment.

    Attributes:
        id: increases in recording order, so every call's outputs have larger ids than its inputs.
        name: the name of a leaf (parameter or input), else None.
        differentiable: whether autograd follows it; others are among `Record.constants`.
        seq: autograd's sequence number of the node that made it, which tells apart two views of one layout.
        number: which of that node's results it is.
        data: of a leaf.
        depth: how many operators have to run to compute it again from what the tape holds; None if that is impossible.
    """

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str | None = None
    differentiable: bool = True
    seq: int = -1
    number: int = 0
    data: Saved | None = None
    depth: int | None = None
    _maker: weakref.ref[Call] | None = None  # weak: a call holds its results, and memory should go with the tape

    @property
    def call(self) -> Call | None:
        """What produced it; None for a leaf."""
        return self._maker() if self._maker is not None else None

    @call.setter
    def call(self, call: Call) -> None:
        self._maker = weakref.ref(call)

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return prod(self.shape)

    def __str__(self) -> str:
        return self.name or (f"{self.call.name}#{self.call.index}" if self.call else f"value{self.id}")


HERE = torch.device("cpu")  # where tapes are traced; another device's numbers are brought over once
NO_ADDRESS = 1 << 40  # what has no memory begins below: at its own offset


class Saved:
    """A tensor as it was at one moment, shared with the program, not copied, until somebody writes to it."""

    __slots__ = ("_near", "_source", "_tensor", "_version")

    def __init__(self, tensor: Tensor, *, written: bool = False) -> None:
        """Take a tensor; one that its operator has just `written` to gets its new version only after the call."""
        self._near: Tensor | None = None  # another device's numbers, brought over when they were first asked for
        if tensor.is_inference():  # has no version, and autograd would not save it
            self._tensor, self._source, self._version = tensor.clone(), None, -1
            return
        base = tensor._base
        # a view shares its base's version, and may be gone (weight.t()) while the base is not
        self._source: weakref.ref[Tensor] | None = weakref.ref(tensor if base is None else base)
        self._tensor, self._version = tensor.detach(), tensor._version + written

    @classmethod
    def own(cls, tensor: Tensor) -> Saved:
        """Take a tensor that no program has, so that nobody will write to it."""
        saved = cls.__new__(cls)
        saved._tensor, saved._source, saved._version, saved._near = tensor, None, -1, None
        return saved

    def get(self) -> Tensor:
        """Give the data, detached, on the CPU.

        Raises:
            StaleTensor: the tensor was modified in place after the recording.
        """
        source = self._source() if self._source is not None else None
        if source is not None and source._version != self._version:
            shape = tuple(self._tensor.shape)
            raise StaleTensor(
                f"a tensor of shape {shape} that the tape needs was modified in place after recording "
                f"(an optimizer step?): trace before it is changed, or record again"
            )
        tensor = self._tensor
        if tensor.data_ptr() < NO_ADDRESS and not tensor.untyped_storage().nbytes() and tensor.numel():
            raise StaleTensor(
                f"the memory of a tensor of shape {tuple(tensor.shape)} that the tape needs was freed after it "
                "was used, though no module of the recorded model is known to do so: record the model that does"
            )
        if tensor.is_cpu:
            return tensor
        if self._near is None:
            self._near = tensor.to(HERE)
        return self._near

    @property
    def data(self) -> Tensor:
        """The memory that it refers to, whatever is there by now."""
        return self._tensor

    def shares_version(self, tensor: Tensor) -> bool:
        """Tell whether writing to another tensor may be seen as a change of this one: of its base, or detached."""
        source = self._source() if self._source is not None else None
        return source is not None and source._version == tensor._version

    def keep(self) -> None:
        """Copy the data: the original is about to be overwritten."""
        self._tensor = self._tensor.clone()
        self._source = None

    @property
    def is_shared(self) -> bool:
        """Whether the program has the tensor too, and may write to it."""
        return self._source is not None and self._source() is not None

    def move(self, storage: torch.UntypedStorage) -> None:
        """Refer to a copy of the memory, in the same places."""
        self.get()
        kept = self._tensor
        place = kept.storage_offset(), kept.size(), kept.stride()
        self._tensor = torch.empty(0, dtype=kept.dtype, device=kept.device).set_(storage, *place)
        self._source = None


class Scope(NamedTuple):
    """A module call, or a `component` block, in which operators ran."""

    name: str
    instance: int

    def __str__(self) -> str:
        return self.name if self.instance == 1 else f"{self.name}:{self.instance}"


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in a call's arguments for its tensor number `position`."""

    position: int


class Again:
    """A tensor that no derivative needs, and that autograd does not keep either: computed again if somebody asks."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value

    def get(self) -> Tensor:
        """Give the data.

        Raises:
            StaleTensor: what it is computed from was modified in place after the recording.
            NotOnTape: the call that made it is not on the tape any more.
        """
        return _computed(self.value, {})


def _computed(value: Value, known: dict[int, list[Tensor | None]]) -> Tensor:
    """Compute a value again; `known` are the results of calls that were run for it already, by their number."""
    if value.data is not None:
        return as_real(value.data.get())
    call = value.call
    if call is None:
        raise NotOnTape(f"what made a tensor of shape {value.shape} is not on the tape")
    number = next(n for n, made in enumerate(call.outputs) if made is value)
    kept = call.results[number] if call.results else None
    if kept is not None:
        return as_real(kept.get())
    if call.index not in known:
        known[call.index] = call.run([_given(x, known) for x in call.inputs])
    found = known[call.index][number]
    assert found is not None
    return found


def _given(x: Input, known: dict[int, list[Tensor | None]]) -> Tensor:
    if isinstance(x.saved, Saved):
        return as_real(x.saved.get())
    assert x.value is not None
    return _computed(x.value, known)


@dataclass(eq=False, slots=True)
class Input:
    """A tensor argument: its value (None if autograd does not follow it) and its data.

    Attributes:
        constant: what it is among the record's constants, where autograd does not follow it.
    """

    value: Value | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    saved: Saved | Again | None
    constant: Value | None = None

    def tensor(self) -> Tensor:
        """Give the data as it was at the time of the call, detached; complex numbers as pairs of real ones."""
        if self.saved is not None:
            return as_real(self.saved.get())
        kind = self.dtype.to_real() if self.dtype.is_complex else self.dtype
        if not self.stride:
            return torch.zeros(self.shape, dtype=kind, device=self.device)
        # a view's derivative needs no data, but as_strided needs to know how they lay
        reach = sum((n - 1) * t for n, t in zip(self.shape, self.stride, strict=True))
        flat = torch.zeros(max(0, self.offset + reach + 1), dtype=kind, device=self.device)
        return flat.as_strided(self.shape, self.stride, self.offset)


def as_real(tensor: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones; other tensors as they are."""
    return torch.view_as_real(tensor.resolve_conj().resolve_neg()) if tensor.is_complex() else tensor


@dataclass(eq=False)
class Call:
    """One operator call.

    Attributes:
        name: the operator and its overload, "aten.mm.default".
        base: the bare operator, "mm", also for its in-place form.
        inputs: the tensor arguments, flattened, in argument order.
        written: positions among them that the operator writes to.
        results: what it gave, None where that was not kept; empty if nothing was. Kept are random numbers, since
            running it again would differ, and what autograd saves too, since derivatives are read off it.
        outputs: a value for each tensor result; None where autograd does not follow.
        scopes: the module calls around it, outermost first.
        source: "file:line" of the user's code.
    """

    index: int
    op: Callable[..., Any]
    name: str
    base: str
    inputs: tuple[Input, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scopes: tuple[Scope, ...]
    source: str
    written: tuple[int, ...] = ()
    results: tuple[Saved | None, ...] = ()
    gives_complex: bool = False
    outputs: tuple[Value | None, ...] = ()

    @property
    def inplace(self) -> bool:
        """Whether the operator writes to its first tensor argument."""
        return 0 in self.written

    @property
    def title(self) -> str:
        """The operator as tables and sentences name it: "log_softmax", "overlay"."""
        return self.base.removeprefix("gradtrace.").strip("_")

    @property
    def module(self) -> str:
        """The innermost module call or component block, "" at the top."""
        return str(self.scopes[-1]) if self.scopes else ""

    @property
    def where(self) -> str:
        """One phrase that says which call this is."""
        inside = f" in {self.module}" if self.scopes else ""
        return f"{self.name}#{self.index}{inside} ({self.source})"

    def arguments(self, tensors: Sequence[Tensor] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give (args, kwargs) with `tensors` (default: the recorded data) in their places."""
        data = [i.tensor() for i in self.inputs] if tensors is None else tensors
        return _fill(self.args, data), {k: _fill(v, data) for k, v in self.kwargs.items()}

    def run(self, tensors: Sequence[Tensor] | None = None) -> list[Tensor | None]:
        """Run the operator again, out of place, and give its tensor results, flattened.

        Complex arguments and results are pairs of real numbers here, as everywhere on the tape.
        """
        data = [i.tensor() for i in self.inputs] if tensors is None else list(tensors)
        for position in self.written:
            data[position] = data[position].clone()
        for position, given in enumerate(self.inputs):
            if given.dtype.is_complex:
                data[position] = torch.view_as_complex(data[position].contiguous())
        args, kwargs = self.arguments(data)
        try:
            found = self.op(*args, **kwargs)
        except NotImplementedError as error:
            if "from the 'CPU' backend" not in str(error):
                raise
            raise Unsupported(
                f"{self.where} exists on another device only, and tapes are traced on the CPU: record the model there"
            ) from None
        return [y if y is None else as_real(y) for y in flat_tensors(found)]

    @property
    def complex(self) -> bool:
        """Whether complex numbers go in or come out."""
        for given in self.inputs:  # no generator: this is asked about every call of every pass
            if given.dtype.is_complex:
                return True
        return self.gives_complex


def _fill(template: Any, tensors: Sequence[Tensor]) -> Any:
    """Put tensors back in the places of slots; what was made on another device is made here."""
    if isinstance(template, Slot):
        return tensors[template.position]
    if isinstance(template, torch.device):
        return HERE
    if type(template) in (list, tuple):
        return type(template)(_fill(item, tensors) for item in template)
    return template


def flat_tensors(result: Any) -> Iterator[Tensor | None]:
    """Give the tensors of an operator's result (a tensor, or sequences of them) in order."""
    if isinstance(result, Tensor) or result is None:
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from flat_tensors(item)


@dataclass(frozen=True)
class Gone:
    """Stands for the operator of a call whose arguments were not kept: a saved trace has names, and runs nothing."""

    name: str
    is_view: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            NotKept: always.
        """
        del args, kwargs
        raise NotKept(
            f"this needs the numbers of {self.name} on the tape, which a saved trace does not have: ask it of the live "
            "trace, before saving"
        )


class Cut(NamedTuple):
    """Where autograd stops following a value that the program goes on with."""

    value: int  # its id
    operator: str
    module: str
    source: str


@dataclass(eq=False)
class Record:
    """What the passes over a tape read.

    Attributes:
        calls: operator calls, in recording order.
        leaves: parameters and inputs that require grad, by name.
        aliases: further names of tied parameters.
        frozen: names of parameters that do not require grad, or are no leaves.
        derived: those among them that are no leaves: they are computed from other tensors.
        modules: qualified names of the model's modules.
        cuts: where autograd stopped following something: `detach` and `.data`, which operators that save their result
            call too, and what ran under no_grad.
        overwritten: values whose numbers an operator has replaced, and its call: to them autograd hands back zeros.
        called: how often each module call or block was entered while recording, by name.
        examples: the number of examples, where the recording was told which tensors enumerate them.
        constants: calls whose results autograd does not follow, made from the examples: they say what belongs to which
            example, and nothing else. Kept apart from `calls`, which are the same whether examples were given or not.
        fused: multiplications in the calls among them that have to be taken apart (see `fused_recurrent`).
        reduces: whether a backward pass would have FSDP or DDP exchange gradients.
        exchanged: where numbers of other ranks meet what autograd follows.
        pipelined: where something is sent to one other rank, or received from it; "" if nowhere.
        room: makes room for what passes over this tape give, and for those over other tapes of the same model.
    """

    calls: list[Call] = field(default_factory=list)
    leaves: dict[str, Value] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    derived: set[str] = field(default_factory=set)
    modules: tuple[str, ...] = ()
    cuts: list[Cut] = field(default_factory=list)
    overwritten: list[tuple[Value, Call]] = field(default_factory=list)
    called: dict[str, int] = field(default_factory=dict)
    examples: int | None = None
    example_values: list[Value] = field(default_factory=list)
    constants: list[Call] = field(default_factory=list)
    count: int = 0
    fused: int = 0
    reduces: bool = False
    exchanged: list[str] = field(default_factory=list)
    pipelined: str = ""
    room: Callable[..., Tensor] | None = None

    def value(self, tensor: Tensor, *, name: str | None = None, differentiable: bool = True) -> Value:
        """Make a new value for a tensor."""
        self.count += 1
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if dtype.is_complex:
            shape, dtype = (*shape, 2), dtype.to_real()
        return Value(self.count - 1, shape, dtype, name, differentiable)

    def precision(self, loss: Value) -> torch.dtype:
        """Give float64 where the program has a leaf of it, also for what it casts down in between; else float32."""
        double = any(v.dtype is torch.float64 for v in (loss, *self.leaves.values()))
        return torch.float64 if double else torch.float32

    def before(self, loss: Value) -> list[Call]:
        """Give the calls from which the loss can be reached, in recording order."""
        reached, out = {loss.id}, []
        for call in reversed(self.calls):
            if any(v is not None and v.id in reached for v in call.outputs):
                reached.update(i.value.id for i in call.inputs if i.value is not None)
                out.append(call)
        return out[::-1]

    def after(self, leaves: Iterable[Value]) -> set[int]:
        """Give the ids of some leaves, and of all values that are computed from them."""
        reached = {v.id for v in leaves}
        for call in self.calls:
            for given in call.inputs:
                if given.value is not None and given.value.id in reached:
                    reached.update([v.id for v in call.outputs if v is not None])
                    break
        return reached
