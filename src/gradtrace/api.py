"""`record` → `Tape` → `Trace`: the calls that most programs need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from .backward.certificate import Certificate, certify
from .backward.example_labels import Labels, propagate
from .backward.several import ask
from .errors import BadArgument, GradtraceError, NotOnTape, NotSaved, NotScalar, StaleTensor, UnknownName, Unused
from .jacobians.rules import served_by
from .kept.trace import Kept, write
from .kernels.memory import room_of
from .queries.arguments import (
    components_of,
    example_of,
    examples_of,
    file_of,
    kind_of,
    kinds_of,
    names_of,
    path_in,
    sequence_of,
    whole,
)
from .queries.bounds import Bound, Bounding
from .queries.estimate import Estimate, estimate, is_small, key_of, refuse
from .queries.flow import Flow, flow
from .queries.forest import FIRST, KINDS, Forest, check_loss, check_numbers, plant
from .queries.influence import influence
from .queries.joins import JoinTable, Places, joins
from .queries.k_best import Ranking
from .queries.layers import LayerTable, layers
from .queries.paths import NoPath, Path, follow, follow_all
from .queries.sizes import Sizes, at_most, sizes
from .queries.strongest import strongest
from .queries.summary import Summary, summarise
from .queries.tables import InfluenceTable
from .queries.why import Reasons, Why, unused, why
from .recording.components import Component, names_listed, select_leaves, top_level
from .recording.derivatives import local
from .recording.dispatch import Capture
from .recording.fused_recurrent import take_apart
from .recording.guest import Guest
from .recording.isolation import alone
from .recording.keeping import keep_leaves
from .recording.ranks import refuse_check, refuse_pipeline, unwrapped
from .recording.record import Call, Record, Value
from .recording.strangers import refuse_transformed
from .report.cell import cell
from .report.document import here, of_trace
from .report.frames import dataframe, dot
from .report.page import render
from .report.snapshot import question_of
from .report.words import counted
from .semirings import PLAIN, Family, Graded, Power, Through, named
from .semirings.base import Semiring, Sum

Progress: TypeAlias = Callable[[str, list[Call]], Iterable[Call]]

if TYPE_CHECKING:
    import anywidget
    import pandas


@contextmanager
def record(
    model: nn.Module | None = None,
    examples: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    names: Mapping[str, Tensor] | None = None,
) -> Iterator[Tape]:
    """Record the forward pass made inside the block.

    Args:
        model: gives parameters and module calls their names. Without it the leaves are the tensors that
            require grad, named leaf0, leaf1, … in order of use.
        examples: the tensor, or tensors, whose first dimension enumerates the examples of the batch;
            needed for per-example results.
        names: names for leaves of functional code.

    Yields:
        the tape, to be used after the block.

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> with record(names={"w": w}) as tape:
    ...     loss = (w * w).sum()
    >>> tape.grad(loss, [w])[0].tolist()
    [6.0, 8.0]
    """
    if model is not None and not isinstance(model, nn.Module):
        raise BadArgument(f"record(model) takes a torch.nn.Module or None, not {type(model).__name__}")
    tape = Tape(model, examples_of(examples), names_of(names))
    try:
        with tape._capture.running():
            yield tape
    except RuntimeError as error:  # as TorchScript's interpreter makes one of whatever passes through it
        if tape._capture.refused is None:
            raise
        raise tape._capture.refused from error


@contextmanager
def watch(model: nn.Module, examples: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None) -> Iterator[Tape]:
    """Record as a guest of a program that must not notice: every number stays what it is to the last bit.

    What goes wrong while recording raises nothing: the tape's `refused` says what it was.

    Args:
        model, examples: as for `record`.

    Yields:
        the tape, to be used after the block.
    """
    tape = Tape(model, examples_of(examples), {}, Guest)
    with tape._capture.running():
        yield tape


LATE = (
    "A trace runs each pass when it is first asked for, and reads paths off the tape: "
    "trace.compute() before the change does what else comes too late"
)


@contextmanager
def lazily() -> Iterator[None]:
    """Run a pass of a trace, alone; say what to do where the tensors that it needs have changed meanwhile."""
    try:
        with alone():
            yield
    except StaleTensor as error:
        said = error.said if LATE in error.said else f"{error.said}. {LATE}"
        raise StaleTensor(said) from None


class _NotSaved:
    """What holds tensors of one forward pass, and refers to the program: it can be neither pickled nor copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotSaved(
            f"a {type(self).__name__} cannot be pickled or copied: it shares memory with the program. trace.save(path) "
            "writes a trace without its tape, and gradtrace.load(path) reads it"
        )


class Tape(_NotSaved):
    """A recorded forward pass."""

    def __init__(
        self,
        model: nn.Module | None,
        examples: Sequence[Tensor],
        names: Mapping[str, Tensor],
        capture: type[Capture] = Capture,
    ) -> None:
        model = unwrapped(model)
        self._record = Record(room=room_of(model))
        self._capture = capture(self._record, model, names, examples)
        self._parameters = frozenset(n for n, _ in model.named_parameters()) if model is not None else frozenset()
        self._sizes: dict[tuple[Any, ...], Sizes] = {}  # by the loss and the leaves
        self._at_most: dict[int, Sizes] = {}  # by the loss

    @property
    def record(self) -> Record:
        """The calls, leaves and names, as plain data."""
        return take_apart(self._record)

    @property
    def calls(self) -> list[Call]:
        """Operator calls, in recording order."""
        return self.record.calls

    @property
    def leaves(self) -> dict[str, Value]:
        """Parameters and inputs that require grad, by name."""
        return self.record.leaves

    @property
    def refused(self) -> Exception | None:
        """What ended the recording before its block did, if anything."""
        return self._capture.refused

    def losses(self) -> list[Tensor]:
        """Find what may be the loss: one-element results that the program still holds, and no other one depends on."""
        held = [(v, t) for v, t in self._capture.values.held() if v.numel == 1 and v.call is not None]
        ends, behind = {v.id for v, _ in held}, set[int]()
        for call in reversed(self.calls):
            if any(v is not None and (v.id in ends or v.id in behind) for v in call.outputs):
                behind.update(i.value.id for i in call.inputs if i.value is not None)
        return [t for v, t in held if v.id not in behind]

    def value_of(self, tensor: Tensor) -> Value:
        """Find the value that a tensor stands for.

        Raises:
            NotOnTape: the tape has not seen it, or autograd does not follow it.
        """
        if not isinstance(tensor, Tensor):
            raise BadArgument(f"expected the name of a parameter or a recorded tensor, not {type(tensor).__name__}")
        refuse_transformed(tensor)
        value = self._capture.values.lookup(tensor) if tensor.requires_grad else None
        if value is None:
            raise NotOnTape(
                f"a tensor of shape {tuple(tensor.shape)} that does not require grad is not followed on a tape"
            )
        return value

    def find(self, key: str | Tensor) -> Value:
        """Find a value by its tensor or by its leaf's name.

        Raises:
            UnknownName: no leaf has that name; the message lists those that exist.
        """
        if not isinstance(key, str):
            return self.value_of(key)
        name = self.record.aliases.get(key, key)
        if name in self.record.frozen:
            raise UnknownName(f"{name!r} does not require grad (it is frozen), so no gradient reaches it")
        if name not in self.record.leaves:
            raise UnknownName(f"unknown parameter {key!r}; there are {names_listed(self.record.leaves) or 'none'}")
        return self.record.leaves[name]

    def _device(self, key: str | Tensor) -> torch.device:
        """Say where a leaf, or another recorded tensor, is: its gradient goes there."""
        if isinstance(key, Tensor):
            return key.device
        leaf = self.find(key)
        return next(tensor.device for tensor, value in self._capture.values.leaves.values() if value is leaf)

    def _loss(self, loss: Tensor) -> Value:
        if not isinstance(loss, Tensor):
            raise BadArgument(f"the loss must be a tensor, not {type(loss).__name__}")
        refuse_transformed(loss)
        if loss.numel() != 1:
            raise NotScalar(f"the loss must have one element, not shape {tuple(loss.shape)}: take its mean() or sum()")
        if loss.is_complex():
            raise NotScalar("the loss is complex: take its abs() or real part")
        if not loss.requires_grad:
            raise NotOnTape("the loss does not require grad: it was computed under no_grad, or from constants only")
        return self.value_of(loss)

    @alone()
    def grad(
        self,
        loss: Tensor,
        inputs: Tensor | str | Sequence[Tensor | str],
        semiring: Family | str | Sequence[Family | str] = Sum,
        *,
        allow_unused: bool = False,
        log2: bool = False,
    ) -> tuple[Any, ...]:
        """Run backpropagation under a semiring, in the image of `torch.autograd.grad`.

        Args:
            loss: ℓ, a recorded tensor with one element.
            inputs: leaves or other recorded tensors, or names of leaves.
            semiring: ⊕, ⊗ and λ; `Sum` gives the gradient. One, or its name ("power:8"), or several, which share
                one walk of the tape.
            allow_unused: give None for an input that the loss does not depend on, instead of an error.
            log2: give log2 of the absolute numbers, in float64, which reaches where no float does (1e-2000).

        Returns:
            g_v for each input, in its shape; where an element consists of several numbers (`TopK`, `SignedMax`,
            `Graded`, `Through`), they are in front. Not always contiguous, as autograd's gradients. For several
            semirings, one such tuple for each.

        Raises:
            NotScalar, NotOnTape, Unused, MissingRule: as their messages say.
        """
        wanted = sequence_of("inputs", inputs, (Tensor, str))
        values = [self.find(i) for i in wanted]
        one = isinstance(semiring, (Semiring, Graded, Through, str))
        asked = [named(k) for k in sequence_of("semiring", semiring, (Semiring, Graded, Through, str), empty=True)]
        if not asked:
            return ()
        root, split = self._loss(loss), any(not isinstance(k, Semiring) for k in asked)
        parts = len(top_level(self.record)) if split else 0
        for key in filter(None, [key_of(k, parts) for k in asked]):
            self._afford(key[0], root, lanes=key[1])
        found = ask(self.record, root, values, asked, log2=log2, cast=not log2)
        unused = [str(v) for v in values if v.id not in found[0]]
        if unused and not allow_unused:
            raise Unused(f"the loss does not depend on {', '.join(unused)}; pass allow_unused=True to get None for it")
        devices = [self._device(i) for i in wanted]
        results = [
            tuple(None if v.id not in f else f[v.id].to(at) for v, at in zip(values, devices, strict=True))
            for f in found
        ]
        return results[0] if one else tuple(results)

    @alone()
    def jacobian(self, call: Call | int, argument: int = 0, result: int = 0) -> Tensor:
        """Differentiate a result of one call by one of its tensor arguments, at the recorded numbers, by autograd.

        Args:
            call: one of `tape.calls`, or its number.
            argument: which of its tensor arguments, in the order of `call.inputs`.
            result: which of its results, in the order of `call.outputs`.

        Returns:
            ∂result/∂argument, in the shape of the result followed by that of the argument.

        Raises:
            BadArgument: there is no such call, argument or result, or autograd does not follow it.

        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> with record(names={"w": w}) as tape:
        ...     loss = (w * w).sum()
        >>> tape.jacobian(0, argument=1).tolist()
        [[3.0, 0.0], [0.0, 4.0]]
        """
        number = call.index if isinstance(call, Call) else call
        calls = {known.index: known for known in self.calls}
        if number not in calls:
            raise BadArgument(f"no call {number} on the tape; there are {len(calls)}: tape.calls lists them")
        return local(calls[number], argument, result)

    @alone()
    def trace(self, loss: Tensor, *, check: bool = False, progress: bool | Progress = False) -> Trace:
        """Find the strongest paths from every leaf scalar to the loss.

        Args:
            loss: ℓ, a recorded tensor with one element.
            check: compare the tape under Sum with autograd first (call before `loss.backward()`): one call of each
                kind by itself, for a random cotangent, and what reaches each value with what reaches it in one
                ordinary backward pass. Hooks that the program has set on tensors or modules run once in that pass; one
                that changes a gradient is an error. Gradients of all values are kept meanwhile.
            progress: show a progress bar for each pass; or what goes through a pass's calls and shows that, given the
                name of the pass and the calls.

        Raises:
            CertificateError: `check` found a difference that rounding does not explain.
            NotANumber: a forward value is NaN, or the loss is infinite; names the parameter, or the operator and
                the module.
            NotEnoughMemory: it surely does not fit into memory; so says every other question.
        """
        refuse_pipeline(self._record)
        value = self._loss(loss)
        self._afford("check" if check else "trace", value)
        check_numbers(self.record, value, self._parameters)
        check_loss(value, float(loss))
        certificate = None
        if check:
            refuse_check(self._record)
            certificate = certify(self.record, value, loss, list(self._capture.values.leaves.values()))
        return Trace(self, value, float(loss), certificate, progress=progress)

    def estimate(
        self,
        loss: Tensor,
        of: str | Sequence[str] = "*",
        semirings: Sequence[Family | str] = (*PLAIN, "power:8", "topk:8", "graded:4"),
    ) -> Estimate:
        """Say how much time and memory questions will take, before they are asked: right within a factor of two or so.

        The first time, half a second is spent on finding out how fast this machine is.

        Args:
            loss: ℓ, a recorded tensor with one element.
            of: a glob over parameter names, or several, of which influence is asked.
            semirings: what `tape.grad` is asked; those of one's own are left out.
        """
        value, some = self._loss(loss), select_leaves(self.record, of)
        asked = [named(k) for k in sequence_of("semirings", semirings, (Semiring, Graded, Through, str), empty=True)]
        apart, parts = self.record.examples is not None, len(top_level(self.record))
        return estimate(self._size(value), self._size(value, some), asked, parts, apart=apart)

    def _size(self, loss: Value, leaves: Sequence[Value] | None = None) -> Sizes:
        key = loss.id, None if leaves is None else frozenset(v.id for v in leaves)
        if key not in self._sizes:
            self._sizes[key] = sizes(self.record, loss, leaves)
        return self._sizes[key]

    def _afford(self, question: str, loss: Value, leaves: Sequence[Value] | None = None, *, lanes: int = 1) -> None:
        """Refuse a question for which there is not enough memory."""
        if loss.id not in self._at_most:
            self._at_most[loss.id] = at_most(self.record, loss)
        if not is_small(question, self._at_most[loss.id], lanes):
            refuse(question, self._size(loss, leaves), lanes)


class Strength(Mapping[str, Tensor]):
    """log2 weights of the best paths, by leaf name or recorded tensor; -inf where there is no path."""

    def __init__(self, tape: Tape, forest: Callable[[], Forest]) -> None:
        self._tape, self._forest = tape, forest

    @lazily()
    def __getitem__(self, key: str | Tensor) -> Tensor:
        value = self._tape.find(key)
        log2 = self._forest().log2.get(value.id)
        if log2 is None:
            return torch.full(value.shape, -torch.inf, dtype=torch.float64)
        return log2.amax(0).reshape(value.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tape.leaves)

    def __len__(self) -> int:
        return len(self._tape.leaves)


class Trace(_NotSaved):
    """Where the gradient of one loss goes.

    Passes are run when they are first asked for, and kept.

    Attributes:
        root: the loss's value on the tape, where all paths end.
        loss: what it came to.
        certificate: what `check=True` compared, else None.
        origin: of a saved trace, where it was made.
    """

    origin: dict[str, Any] | None = None

    def __init__(
        self,
        tape: Tape,
        root: Value,
        loss: float,
        certificate: Certificate | None,
        *,
        progress: bool | Progress = False,
    ) -> None:
        self.tape, self.root, self.loss, self.certificate, self._progress = tape, root, loss, certificate, progress
        self._forests: dict[tuple[Any, ...], Forest] = {}  # by kind, whether by example, and of which leaves alone
        self._labels: Labels | None = None
        self._rankings = {
            kind: Ranking(tape.record, root, kind, signed=kind == "extreme") for kind in ("best", "extreme")
        }
        self._bounding: Bounding | None = None
        self._forest("best", per_example=False)

    @property
    def strength(self) -> Mapping[Any, Tensor]:
        """log2 weight of the best path of every scalar, by leaf name or recorded tensor."""
        return Strength(self.tape, self.forest)

    @lazily()
    def forest(self, kind: str = "best", *, per_example: bool = False) -> Forest:
        """Give the winners of a pass: the whole batch as one, or each example on its own.

        Raises:
            GradtraceError: per-example results without `record(…, examples=…)`.
        """
        return self._forest(kind_of(kind), per_example=bool(per_example))

    def _forest(self, kind: str, *, per_example: bool, of: Sequence[Value] | None = None) -> Forest:
        whole, key = self._forests.get((kind, per_example)), (kind, per_example)
        if whole is None and of is not None:
            key = kind, per_example, frozenset(leaf.id for leaf in of)
        elif whole is not None:
            return whole
        if key not in self._forests:
            if self._forests:  # else it is the trace itself
                asked = [part for part, so in (("greedy", kind == "greedy"), ("each example", per_example)) if so]
                self.tape._afford(", ".join(asked), self.root, of)
            labels = self._by_example() if per_example else None
            self._forests[key] = plant(self.tape.record, self.root, kind, labels, self._track(kind), of)
        return self._forests[key]

    def _by_example(self) -> Labels:
        """Say what belongs to which example."""
        if self._labels is None:
            if self.tape.record.examples is None:
                raise BadArgument("per-example results need record(model, examples=x): which tensor is the batch?")
            self._labels = propagate(self.tape.record, self.root)
        if self._labels.free(self.root):
            raise GradtraceError(
                "the loss does not depend on the tensors given as examples, or only through integer "
                "operators that gradtrace does not follow: give the tensors made from them as well"
            )
        return self._labels

    @lazily()
    def compute(self, *, kinds: str | Sequence[str] = ("best",), per_example: bool | None = None) -> Trace:
        """Do now what is otherwise done when it is asked for, so that a step of the optimizer may come before that.

        The passes are run, and the parameters are copied: paths, bounds and reports read them later, and so do passes
        that are not run here.

        Args:
            kinds: "best" and "greedy", or one of them.
            per_example: trace each example on its own; by default if the recording knows the examples.

        Returns:
            the trace itself.

        Raises:
            StaleTensor: the step has been made already.
        """
        apart = self._apart(per_example)
        for kind in kinds_of(kinds):
            self.forest(kind, per_example=apart)
        keep_leaves(self.tape.record)
        return self

    def _track(self, kind: str) -> Callable[[list[Call]], Iterable[Call]]:
        if not self._progress:
            return iter
        name, show = f"{kind} paths", self._progress
        if show is True:
            from rich.progress import track

            return lambda calls: track(calls, description=name, transient=True)
        return lambda calls: show(name, calls)

    @lazily()
    def path(
        self,
        key: str | Tensor,
        index: tuple[int, ...] | int,
        *,
        kind: str = "best",
        example: int | None = None,
    ) -> Path:
        """Follow the trace of one scalar to the loss.

        Args:
            key: a leaf's name, or a recorded tensor.
            index: which scalar of it.
            kind: "best" (strongest path) or "greedy" (argmax |w·g| with the ordinary gradient, step by step).
            example: trace this example of the batch alone.

        Raises:
            NoPath: no path of non-zero weight leads from there to the loss.
        """
        value = self.tape.find(key)
        example = None if example is None else example_of(example, self.tape.record.examples)
        forest = self.forest(kind, per_example=example is not None)
        return _path(forest, value, index, example)

    @lazily()
    def strongest(self, k: int = 10, of: str | Sequence[str] = "*") -> list[Path]:
        """Give the best paths of the k leaf scalars that have the strongest, strongest first."""
        k, leaves, forest = whole("k", k, 0), select_leaves(self.tape.record, of), self.forest()
        return follow_all(forest, [(leaves[n], flat) for _, n, flat in strongest(forest, leaves, k)])

    @lazily()
    def paths(
        self, of: str | Tensor | Sequence[str] = "*", index: tuple[int, ...] | int | None = None, k: int = 10
    ) -> list[Path]:
        """Find the k strongest paths, strongest first: of one scalar, or among all paths of a group of parameters.

        Args:
            of: a leaf's name or a recorded tensor; without `index`, a glob over parameter names, or several.
            index: which scalar of it; None for all scalars of the group.
            k: how many; fewer where there are not so many.
        """
        k = whole("k", k, 1)
        if index is None:
            values = [self.tape.find(of)] if isinstance(of, Tensor) else select_leaves(self.tape.record, of)
            return self._rankings["best"].strongest(self.forest(), values, k)
        if not isinstance(of, (str, Tensor)):
            raise UnknownName(f"an index needs one parameter, not {of!r}")
        return self._rankings["best"].paths(self.tape.find(of), index, k)

    @lazily()
    def extremes(self, key: str | Tensor, index: tuple[int, ...] | int) -> tuple[Path, Path]:
        """Find one scalar's path of most positive weight, and that of most negative (or least positive) weight.

        Raises:
            NoPath: no path of non-zero weight leads from there to the loss.
        """
        value = self.tape.find(key)
        found = self._rankings["extreme"].ends(value, index)
        if len(found) < 2:
            raise NoPath(f"no path of non-zero weight leads from {value}{index} to the loss")
        return found[0], found[1]

    @lazily()
    def bound(
        self, key: str | Tensor, index: tuple[int, ...] | int, *, p: float = 8, path: Path | None = None
    ) -> Bound:
        """Bound one scalar's strongest path: by Power(p) from above, by one concrete path from below.

        Args:
            p: larger is tighter.
            path: the concrete path; the greedy one by default.

        Raises:
            NoPath: no path of non-zero weight leads from there to the loss.
        """
        value = self.tape.find(key)
        Power(p)  # or say which p there are
        if self._bounding is None or self._bounding.value is not value:
            self._bounding = Bounding(self.tape.record, self.root, value)
        if path is None:
            forest = self._forests.get(("greedy", False))
            path = _path(self._bounding.greedy if forest is None else forest, value, index)
        return self._bounding.of(index, float(p), path_in(path))

    @lazily()
    def influence(
        self,
        components: Component | Sequence[Component] | None = None,
        of: str | Sequence[str] = "*",
        *,
        per_example: bool | None = None,
        kind: str = "best",
    ) -> InfluenceTable:
        """Tabulate which components the traces of a group of parameters cross.

        Args:
            components: module names, globs, call instances ("rnn:2"), component blocks, or `Slice`s
                (attention heads: `gradtrace.components.heads(model)`); the outermost modules by default.
            of: a glob over parameter names, or several.
            per_example: trace each example on its own; by default if the recording knows the examples.
            kind: "best" or "greedy".
        """
        apart = self._apart(per_example)
        parts = components_of(components)
        leaves = select_leaves(self.tape.record, of) if apart else None  # a group is a small part of what there is
        if leaves is not None and len(leaves) == len(self.tape.leaves):
            leaves = None
        return influence(self._forest(kind_of(kind), per_example=bool(apart), of=leaves), parts, of)

    @lazily()
    def why(self, name: str) -> Why:
        """Say why a parameter gets no gradient, or next to none, and where that is decided.

        Causes are those of `gradtrace.queries.why.CAUSES`: frozen, unused, cut off by detach or no_grad, a derivative
        that is 0, NaN, cancelled, vanished, or none: "healthy".

        Args:
            name: of a parameter.

        Raises:
            UnknownName: there is none of that name.
        """
        known = self.tape.record.aliases.get(name, name) if isinstance(name, str) else name
        if known not in self.tape.record.frozen:
            known = str(self.tape.find(known).name)
        return why(self._reasons, known)

    @lazily()
    def unused(self) -> dict[str, list[str]]:
        """List by cause the parameters that the loss was not computed from: frozen, unused, cut off, result unused."""
        return unused(self._reasons)

    @lazily()
    def layers(self, *, entropy: bool = True) -> LayerTable:
        """Tabulate the modules: gradient, strongest path, entropy, dead units and parameters, log2 gained or lost.

        Columns are explained by `gradtrace.queries.layers.LayerRow`. Passes under Max, Sum and Entropy are run.

        Args:
            entropy: leave out the last of them, which costs more than the others, with False.
        """
        return layers(self.tape.record, self.root, entropy=entropy)

    @cached_property
    def _reasons(self) -> Reasons:
        return Reasons(self.tape.record, self.root, self.forest())

    @lazily()
    def flow(
        self,
        of: str | Sequence[str] = "*",
        *,
        kind: str = "best",
        weighted: bool = False,
        per_example: bool = False,
    ) -> Flow:
        """Count the traces that run through every operator call and between modules.

        Args:
            of: a glob over parameter names, or several.
            kind: "best" or "greedy".
            weighted: count each trace by its weight.
            per_example: let every example have traces of its own, instead of the batch.
        """
        self.tape._afford("flow", self.root)
        return flow(self.forest(kind, per_example=bool(per_example)), of, weighted=weighted)

    @lazily()
    def joins(
        self,
        of: str | Sequence[str] = "*",
        *,
        kind: str = "best",
        per_example: bool | None = None,
        by_example: bool = False,
        signed: bool = False,
    ) -> JoinTable:
        """Tabulate the places where branches come together again: by which of them the traces come.

        Args:
            of: a glob over parameter names, or several.
            kind: "best" or "greedy".
            per_example: trace each example on its own; by default if the recording knows the examples.
            by_example: give each example's shares, too.
            signed: give the norm of the part of the gradient that comes in by each branch, too, and how far it goes
                along the whole: a change of basis moves neither, as it does shares. Takes a walk or more for each join.
        """
        forest = self._forest(kind_of(kind), per_example=self._apart(per_example) or bool(by_example))
        return joins(forest, of, by_example=bool(by_example), signed=bool(signed), places=self._places)

    @lazily()
    def summary(
        self, of: str | Sequence[str] | None = None, *, kind: str = FIRST, per_example: bool | None = None
    ) -> Summary:
        """Say in ten lines what stands out: what paths do where they have a choice, what is idle, what is dead.

        Args:
            of: a glob over parameter names, or several; by default the parameters of the module that is used first.
            kind: "best" or "greedy".
            per_example: count the paths of each example; by default if the recording knows them, as a report does, and
                they can be told apart.
        """
        try:
            forest = self._forest(kind_of(kind), per_example=self._apart(per_example))
        except GradtraceError:  # no memory for that, or a file that does not keep it
            if per_example is not None:
                raise
            forest = self._forest(kind_of(kind), per_example=False)
        return summarise(forest, self.loss, of, self._places)

    def _apart(self, per_example: bool | None) -> bool:
        """Tell whether examples are traced on their own, by default if the recording knows them."""
        return self.tape.record.examples is not None if per_example is None else bool(per_example)

    @cached_property
    def _places(self) -> Places:
        return Places(self.tape.record, self.root)

    @property
    def fallbacks(self) -> dict[str, int]:
        """Operators on the way to the loss that no exact rule serves, with their numbers of calls: slow, but exact."""
        calls = self.tape.record.before(self.root)
        return dict(Counter(call.name for call in calls if served_by(call) == "fallback"))

    @lazily()
    def report(self, path: str | PathLike[str], *, title: str | None = None, **question: Any) -> File:
        """Write an interactive report, one HTML file that needs nothing else.

        Args:
            path: where to.
            title: what the page is called.
            question: fields of `gradtrace.report.snapshot.Question`: `groups` of parameters, `components`, `kinds`,
                how many `paths`, the `tokens` of each example, batch × time, for a text model, `signed=True` for each
                branch's part of the gradient, and `semirings`, what else to ask: "entropy", "graded" and "power:8"
                have a view each.

        Returns:
            the path.
        """
        file = file_of(path)
        if question.get("per_example") is not False and self.tape.record.examples is not None:
            self.tape._afford("report", self.root)
        document = of_trace(self, question_of(question), title)
        file.write_text(render(document), encoding="utf-8")
        return file

    @lazily()
    def widget(self, **question: Any) -> anywidget.AnyWidget:
        """Give a notebook's widget: the report, and above it a form whose questions this trace answers.

        Other parameters and components make another page; one scalar gives the steps of its path. Takes
        `pip install 'gradtrace[widget]'`, and the trace stays in memory as long as the widget.

        Args:
            question: as for `report`.

        Raises:
            BadArgument: anywidget is not installed.
        """
        try:
            from .report.widget import TraceWidget
        except ModuleNotFoundError:
            raise BadArgument("a widget needs anywidget: pip install 'gradtrace[widget]'") from None
        return TraceWidget(self, question_of(question), repr(self))

    @lazily()
    def save(
        self, path: str | PathLike[str], *, kinds: str | Sequence[str] = KINDS, per_example: bool | None = None
    ) -> File:
        """Write what tables, paths, flows and reports read, without the tape: `gradtrace.load(path)` answers from it.

        Passes that have not been asked for are run now. The file is safetensors, with JSON inside, and nothing that
        runs. It takes 4 to 16 bytes for each kind and parameter scalar with a path: once for the batch, and once for
        each example in which the scalar has one.

        Args:
            path: where to; the file is there whole or not at all.
            kinds: "best" and "greedy", or one of them.
            per_example: keep the paths of each example, too; by default if the recording knows the examples.

        Returns:
            the path.

        Raises:
            BadArgument: the file cannot be written.
        """
        file, record = file_of(path), self.tape.record
        asked = [(kind, each) for each in (False, True)[: 1 + self._apart(per_example)] for kind in kinds_of(kinds)]
        forests = tuple(self.forest(kind, per_example=each) for kind, each in asked)
        origin = self.origin or here()
        write(file, Kept(record, self.root, self.loss, self.certificate, self.fallbacks, origin, forests))
        return file

    @lazily()
    def _repr_html_(self) -> str:
        return cell(self.forest(), f"loss {self.loss:.4g}; {self!r}")

    @lazily()
    def to_dataframe(self, components: Component | Sequence[Component] | None = None) -> pandas.DataFrame:
        """Give one row a parameter and component: its shape, its strongest path, and how many paths cross."""
        return dataframe(self, components_of(components))

    @lazily()
    def to_dot(self, of: str | Sequence[str] = "*", *, kind: str = "best") -> str:
        """Write the flow between modules as a graph in the DOT language, for Graphviz."""
        return dot(self.flow(of, kind=kind))

    def __repr__(self) -> str:
        leaves, calls = counted(len(self.tape.leaves), "leaf", "leaves"), counted(len(self.tape.calls), "operator call")
        done = "" if self.certificate is None else f", certified to {self.certificate.difference:.1e}"
        return f"Trace({leaves}, {calls}{done}{self._slow()})"

    def _slow(self) -> str:
        """Say which operators the fallback served, and how much of the passes' time they took."""
        if not self.fallbacks:
            return ""
        passes = [forest.seconds for forest in self._forests.values()]
        whole = sum(sum(seconds.values()) for seconds in passes)
        share = sum(seconds.get(name, 0.0) for seconds in passes for name in self.fallbacks) / (whole or 1.0)
        named = ", ".join(f"{name} ({count})" for name, count in self.fallbacks.items())
        return f"; by the fallback, {share:.0%} of the time: {named}"


def _path(forest: Forest, value: Value, index: tuple[int, ...] | int, example: int | None = None) -> Path:
    """Read the path of one scalar, or say that there is none."""
    path = follow(forest, value, index, example)
    if path is None:
        raise NoPath(f"no path of non-zero weight leads from {value}{index} to the loss")
    return path
