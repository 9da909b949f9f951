"""The certificate: the same tape under Sum must give autograd's own gradients.

Two things are compared. Every rule with autograd on that one call, for a random cotangent, in float64: so an error that
cancels in this loss's gradient is found as well. And, value by value from the loss to the leaves, what the recorded
consumers of a value add up to with what reaches it in one ordinary backward pass: so a lost edge is found where it was
lost, and rounding does not pile up on the way, because the next step starts from autograd's own number.

Rounding is allowed for by an a priori bound (see `rounding`), entry by entry. What is beyond it is decided call by
call: the rule is right or wrong in float64; and where each consumer's own backward, run again, gives the number that
autograd has, the bound was too narrow for the operator's formula, and nothing else.

It proves that everything was recorded and that every rule's derivative is right; it does not prove that the maximum was
taken right, for which the tests have brute force.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CertificateError, GradtraceError
from ..recording.record import Call, Record, Value
from ..recording.replay import replay
from .added import Added, Fit, Part
from .call_check import Off, edges, kinds, off, repeatable, worst
from .nan_backwards import nan_in_backward
from .observed import Observed, observe
from .rounding import absolute, least, roundoff, shaped, total, unit
from .walk import Algebra, Edge, walk


@dataclass(frozen=True)
class Certificate:
    """The comparison that a trace passed.

    Attributes:
        leaves: parameters and inputs whose gradient was compared.
        difference: |tape - autograd| where most of the bound was used, in units of the sum of the absolute terms, or of
            the gradient itself, which is no larger, where that settled it.
        tolerance: what rounding may make of it there, (c + m) u.
        values: tensors on the way whose gradient was compared.
        calls: operator calls whose rule was compared with autograd on that call alone, one of each kind.
        decided: values beyond the bound, at which the backward of each consumer, run again, gave autograd's number.
    """

    leaves: int
    difference: float
    tolerance: float
    values: int = 0
    calls: int = 0
    decided: int = 0


@dataclass
class Known:
    """The cotangent of a result.

    Attributes:
        g: in the value's shape.
        source: the sum that it is; None: it is autograd's own number.
        suspect: what was found to differ on the way here, and may be nothing: tape and autograd do not always part a
            storage's history in the same way. It counts if it reaches a leaf.
    """

    g: Tensor
    source: Added | None = None
    suspect: str | None = None


def certify(record: Record, loss: Value, loss_tensor: Tensor, leaves: list[tuple[Tensor, Value]]) -> Certificate:
    """Compare every rule with autograd, and the tape's gradients with those of one ordinary backward pass.

    Raises:
        CertificateError: they differ; names the first operator call, walking back from the loss, that does.
        MissingRule: an operator on the way has no rule.
    """
    if loss_tensor.grad_fn is None:
        raise CertificateError("the loss has no autograd graph to compare with")
    seen = observe(record, loss_tensor, leaves)
    calls = 0
    for call, reached in kinds(record, loss):
        _refuse_wrong(call, reached)
        calls += 1
    found = Comparison(record, loss, seen, {v.id: t for t, v in leaves})
    walk(record, loss, found)
    found.compare_lost()
    return Certificate(len(leaves), found.difference, found.tolerance, found.values, calls, found.decided)


def _refuse_wrong(call: Call, reached: Sequence[bool], because: str = "") -> None:
    """Raise where a rule is wrong; of one that is suspected, `because` of what, the whole call is looked at."""
    wrong = off(call, reached, whole=bool(because))
    if wrong is not None and wrong.ours != wrong.ours and wrong.autograd != wrong.autograd:
        raise CertificateError(
            f"{because}the derivative of {call.where} is NaN towards argument {wrong.position} at "
            f"{_index(wrong.index)}, by autograd as well: there is nothing to compare with"
        )
    if wrong is not None:
        raise CertificateError(
            f"{because}the rule of {call.where} differs from the operator's own derivative: towards argument "
            f"{wrong.position} at {_index(wrong.index)} it gives {wrong.ours:.6g}, and autograd {wrong.autograd:.6g}, "
            f"for a random cotangent; rounding explains {wrong.bound:.1g}"
        )


class Comparison(Algebra[Added, Known]):
    """The algebra of gradients beside autograd's: what consumers add up to is compared, and autograd's number goes on.

    Args:
        record, loss: what is walked.
        seen: autograd's gradients.
        leaves: by value id.
    """

    def __init__(self, record: Record, loss: Value, seen: Observed, leaves: dict[int, Tensor]) -> None:
        self.record, self.loss, self.seen, self.leaves = record, loss, seen, leaves
        self.known: dict[int, Known] = {}
        self.difference, self.tolerance, self.used = 0.0, 0.0, -1.0  # until something is compared
        self.values = self.decided = 0
        self.suspected = False

    def begin(self, loss: Value) -> Added:
        return _one(loss)

    def send(self, edge: Edge, g: Known, known: Added | None) -> Added:
        value = edge.argument
        there = Added(value.shape, value.dtype, kept=True, swift=True) if known is None else known
        there.add(Part(edge.structure, edge.call, g.g, g.source))
        return there

    def finish(self, value: Value, arrived: Added, *, alone: bool) -> Known:
        """Compare what has reached a value with autograd; go on from autograd's number where there is one.

        Raises:
            CertificateError: they differ at a leaf, or a consumer's rule is wrong.
        """
        del alone
        found = self.known[value.id] = self._settle(value, arrived)
        self.suspected = self.suspected or found.suspect is not None
        return found

    def compare_lost(self) -> None:
        """Compare at leaves that nothing on the tape has reached.

        Raises:
            CertificateError: something has reached one in autograd's pass.
        """
        for value in self.record.leaves.values():
            if value.id not in self.known:
                self._settle(value, Added(value.shape, value.dtype, kept=True))

    def _settle(self, value: Value, arrived: Added) -> Known:
        if value.id not in self.seen.arrived:
            return Known(arrived.sum(), arrived, self._suspect(arrived))
        changed, autograd = self.seen.changed(value), self.seen.gradient(value)
        self.values += 1
        fit, suspect = arrived.fit(autograd), None
        if fit.used <= 1:
            self._note(fit)
        else:
            self._refuse_nan(value, arrived, autograd)
            suspect = self._difference(value, arrived, autograd)
        if changed:
            raise CertificateError(f"a hook on {_what(value)} changes its gradient: {UNHOOK}")
        if suspect is not None and value.name:
            raise CertificateError(suspect)
        if suspect is not None:
            return Known(arrived.sum(), arrived, suspect)
        return Known(autograd)

    def _suspect(self, arrived: Added) -> str | None:
        """Give what was found to differ on the way to a value."""
        if not self.suspected:
            return None
        on_the_way = (k.suspect for call in arrived.calls for k in self._cotangents(call) if k and k.suspect)
        return next(on_the_way, None)

    def _cotangents(self, call: Call) -> list[Known | None]:
        return [None if v is None else self.known.get(v.id) for v in call.outputs]

    def _difference(self, value: Value, arrived: Added, autograd: Tensor) -> str | None:
        """Say what is not explained at a value, and may have come from further on."""
        found = worst(0, arrived.sum().to(torch.float64), autograd, arrived.slack())  # tells infinities and NaN apart
        if found is None:
            return None
        suspect = self._suspect(arrived)
        if suspect is None:
            suspect = self._decide(value, arrived, autograd, found)
            self.decided += suspect is None
        elif value.name:
            suspect = f"the gradient of {value.name!r} differs: {suspect}"
        return suspect

    def _note(self, fit: Fit) -> None:
        """Keep where most of the bound was used."""
        if fit.used > self.used:
            self.used, self.tolerance = fit.used, fit.bound()
            self.difference = fit.used * self.tolerance

    def _refuse_nan(self, value: Value, arrived: Added, autograd: Tensor) -> None:
        if bool(autograd.isnan().any()):
            calls = ", ".join(call.where for call in arrived.calls[:3])
            why = f"it comes from {calls or 'a hook'}"
            with suppress(RuntimeError, GradtraceError):  # what cannot be run again
                why = nan_in_backward(self.record, self.loss) or why
            raise CertificateError(
                f"autograd's own gradient of {_what(value)} is NaN ({why}): there is nothing to compare with"
            )

    def _decide(self, value: Value, arrived: Added, autograd: Tensor, found: Off) -> str | None:
        """Say what is wrong at a value; None if a difference is rounding after all.

        Raises:
            CertificateError: a consumer's rule is wrong.
        """
        what = (
            f"the tape's gradient of {_what(value)} differs from autograd's at {_index(found.index)}: {found.ours:.6g} "
            f"is not {found.autograd:.6g}, and rounding explains {found.bound:.1g}; "
        )
        for call in arrived.calls:
            _refuse_wrong(call, [k is not None for k in self._cotangents(call)], what)
        if self._explained(value, arrived, autograd):
            return None
        hook = _hook(value, self.leaves.get(value.id), arrived.calls)
        if hook is not None:
            return f"{what}{hook}: {UNHOOK}"
        right = (
            "the rule of every recorded consumer is right"
            if arrived.calls
            else "nothing recorded leads from it to the loss"
        )
        return f"{what}{right}, so something between them was not recorded (or a node's hook changed it)"

    def _explained(self, value: Value, arrived: Added, autograd: Tensor) -> bool:
        """Tell whether the consumers' own backwards, run again, add up to what autograd has."""
        total = torch.zeros(value.shape, dtype=torch.float64)
        terms, bound = torch.zeros_like(total), torch.full_like(total, least(value.dtype))
        for call in arrived.calls:
            again = _again(call, [None if k is None else k.g for k in self._cotangents(call)])
            for position, given in enumerate(call.inputs):
                if given.value is value:
                    part = shaped(again[position], total.shape)
                    total, terms = total + part, terms + part.abs()
                    bound = bound + part.abs() * unit(call)
        for part in arrived.parts:
            if part.source is not None:
                bound = bound + absolute(part.structure, part.source.slack()).reshape(total.shape)
        bound = bound + terms * (len(arrived.calls) + 1) * roundoff(value.dtype)
        return worst(0, total, autograd, bound) is None


UNHOOK = "a trace follows the forward pass alone; remove the hook while tracing, or trace without check"


def _one(loss: Value) -> Added:
    """Start with what the loss has: 1, from nowhere."""
    found = Added(loss.shape, loss.dtype, kept=True)
    found.g = torch.ones(loss.shape, dtype=loss.dtype)
    return found


def _again(call: Call, g: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Run a call's own backward again; of one that cannot be run again, take the rule's."""
    if repeatable(call):
        return replay(call).vector_product(g)
    out: dict[int, Tensor] = {}
    for position, number, s in edges(call, [c is not None for c in g]):
        given = g[number]
        assert given is not None
        part = total(s, given).reshape(call.inputs[position].shape)
        out[position] = out[position] + part if position in out else part
    return out


def _hook(value: Value, leaf: Tensor | None, consumers: list[Call]) -> str | None:
    """Name a hook that may have changed the gradient of a value."""
    if leaf is not None and leaf._backward_hooks:
        return f"a hook on {value.name!r} changes its gradient"
    for call in consumers:
        if call.name == "autograd.BackwardHookFunction":
            module = call.module or (value.call.module if value.call is not None else "")
            return f"a full backward hook of module {module!r} changes the gradient"
    return None


def _what(value: Value) -> str:
    if value.name:
        return repr(value.name)
    return f"the result of {value.call.where}" if value.call is not None else str(value)


def _index(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"
