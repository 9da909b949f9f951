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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CertificateError, GradtraceError
from ..recording.record import Call, Record, Value
from .call_check import Off, edges, kinds, off, repeatable, vector_product, worst
from .nan_backwards import nan_in_backward
from .observed import Observed, observe
from .rounding import absolute, allowed, least, roundoff, shaped, total, unit


@dataclass(frozen=True)
class Certificate:
    """The comparison that a trace passed.

    Attributes:
        leaves: parameters and inputs whose gradient was compared.
        difference: |tape - autograd| in units of the sum of the absolute terms, where most of the bound was used.
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
class Arrived:
    """What has reached a value.

    Attributes:
        g: Σ terms, float64.
        terms: Σ |terms|.
        slack: what rounding may have made of it.
        consumers: the calls it came from, with the cotangents of their results.
    """

    value: Value
    g: Tensor
    terms: Tensor
    slack: Tensor
    consumers: list[tuple[Call, list[Known | None]]] = field(default_factory=list)


@dataclass
class Known:
    """The cotangent of a result.

    Attributes:
        g: float64.
        slack: what rounding may have made of it; None: it is autograd's own.
        suspect: what was found to differ on the way here, and may be nothing: tape and autograd do not always part a
            storage's history in the same way. It counts if it reaches a leaf.
    """

    g: Tensor
    slack: Tensor | None = None
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
    found.walk()
    return Certificate(len(leaves), found.difference, found.tolerance, found.values, calls, found.decided)


def _refuse_wrong(call: Call, reached: Sequence[bool], because: str = "") -> None:
    """Raise where a rule is wrong."""
    wrong = off(call, reached)
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


class Comparison:
    """One walk back from the loss, value by value beside autograd."""

    def __init__(self, record: Record, loss: Value, seen: Observed, leaves: dict[int, Tensor]) -> None:
        self.record, self.loss, self.seen, self.leaves = record, loss, seen, leaves
        self.pending: dict[int, Arrived] = {}
        self.difference, self.tolerance, self.used = 0.0, 0.0, -1.0  # until something is compared
        self.values = self.decided = 0

    def walk(self) -> None:
        """Compare at every value from which the loss can be reached, leaves last.

        Raises:
            CertificateError: they differ.
        """
        one = torch.ones(self.loss.shape, dtype=torch.float64)
        self.pending[self.loss.id] = Arrived(self.loss, one, one, torch.zeros_like(one))
        for call in reversed(self.record.calls):
            arrived = [self.pending.pop(v.id, None) if v is not None else None for v in call.outputs]
            if any(a is not None for a in arrived):
                self._propagate(call, [None if a is None else self._settle(a) for a in arrived])
        for value in self.record.leaves.values():
            zeros = torch.zeros(value.shape, dtype=torch.float64)
            self._settle(self.pending.pop(value.id, Arrived(value, zeros, zeros, zeros)))

    def _propagate(self, call: Call, known: list[Known | None]) -> None:
        """Carry cotangents to a call's arguments."""
        for position, number, s in edges(call, [k is not None for k in known]):
            value, given = call.inputs[position].value, known[number]
            assert value is not None
            assert given is not None
            shape = value.shape
            g = total(s, given.g).reshape(shape)
            terms = absolute(s, given.g.abs()).reshape(shape)
            slack = terms.mul(allowed(s, call)).add_(least(value.dtype))
            if given.slack is not None:
                slack += absolute(s, given.slack).reshape(shape)
            there = self.pending.get(value.id)
            if there is None:
                self.pending[value.id] = Arrived(value, g, terms, slack, [(call, known)])
                continue
            there.g, there.terms, there.slack = there.g + g, there.terms + terms, there.slack + slack
            if there.consumers[-1][0] is not call:
                there.consumers.append((call, known))

    def _settle(self, arrived: Arrived) -> Known:
        """Compare what has reached a value with autograd; go on from autograd's number where there is one."""
        value = arrived.value
        rounded = (len(arrived.consumers) + 1) * roundoff(value.dtype)  # fan-out, and what is kept
        slack = torch.add(arrived.slack, arrived.terms, alpha=rounded)
        suspect = next((k.suspect for _, known in arrived.consumers for k in known if k and k.suspect), None)
        if value.id not in self.seen.arrived:
            return Known(arrived.g, slack, suspect)
        changed, autograd = self.seen.changed(value), self.seen.arrived.pop(value.id)
        autograd = torch.zeros(value.shape, dtype=value.dtype) if autograd is None else autograd
        self._refuse_nan(arrived, autograd)
        self.values += 1
        suspect = self._difference(arrived, autograd, slack, suspect)
        if changed:
            raise CertificateError(f"a hook on {_what(value)} changes its gradient: {UNHOOK}")
        if suspect is not None and value.name:
            raise CertificateError(suspect)
        return Known(shaped(autograd, value.shape)) if suspect is None else Known(arrived.g, slack, suspect)

    def _difference(self, arrived: Arrived, autograd: Tensor, slack: Tensor, suspect: str | None) -> str | None:
        """Compare at one value; say what is not explained, and may have come from further on (`suspect`)."""
        share = (arrived.g - autograd).abs_().div_(slack)
        used = float(share.max()) if share.numel() else 0.0
        if used <= 1:
            self._note(used, share, arrived, slack)
            return None
        found = worst(0, arrived.g, autograd, slack)  # tells infinities and NaN apart
        if found is not None and suspect is None:
            suspect = self._decide(arrived, autograd, found)
            self.decided += suspect is None
        elif found is not None and arrived.value.name:
            suspect = f"the gradient of {arrived.value.name!r} differs: {suspect}"
        return suspect if found is not None else None

    def _note(self, used: float, share: Tensor, arrived: Arrived, slack: Tensor) -> None:
        """Keep where most of the bound was used."""
        if used > self.used and share.numel():
            at = share.argmax()
            terms = float(arrived.terms.flatten()[at]) or 1.0
            self.used, self.tolerance = used, float(slack.flatten()[at]) / terms
            self.difference = used * self.tolerance

    def _refuse_nan(self, arrived: Arrived, autograd: Tensor) -> None:
        if bool(autograd.sum().isnan()) and bool(autograd.isnan().any()):  # the sum is cheap, and NaN for ∞ - ∞ too
            calls = ", ".join(call.where for call, _ in arrived.consumers[:3])
            why = f"it comes from {calls or 'a hook'}"
            with suppress(RuntimeError, GradtraceError):  # what cannot be run again
                why = nan_in_backward(self.record, self.loss) or why
            raise CertificateError(
                f"autograd's own gradient of {_what(arrived.value)} is NaN ({why}): there is nothing to compare with"
            )

    def _decide(self, arrived: Arrived, autograd: Tensor, found: Off) -> str | None:
        """Say what is wrong at a value; None if a difference is rounding after all.

        Raises:
            CertificateError: a consumer's rule is wrong.
        """
        value, calls = arrived.value, [call for call, _ in arrived.consumers]
        what = (
            f"the tape's gradient of {_what(value)} differs from autograd's at {_index(found.index)}: {found.ours:.6g} "
            f"is not {found.autograd:.6g}, and rounding explains {found.bound:.1g}; "
        )
        for call, known in arrived.consumers:
            _refuse_wrong(call, [k is not None for k in known], what)
        if self._explained(arrived, autograd):
            return None
        hook = _hook(value, self.leaves.get(value.id), calls)
        if hook is not None:
            return f"{what}{hook}: {UNHOOK}"
        right = (
            "the rule of every recorded consumer is right" if calls else "nothing recorded leads from it to the loss"
        )
        return f"{what}{right}, so something between them was not recorded (or a node's hook changed it)"

    def _explained(self, arrived: Arrived, autograd: Tensor) -> bool:
        """Tell whether the consumers' own backwards, run again, add up to what autograd has."""
        total = torch.zeros(arrived.value.shape, dtype=torch.float64)
        terms, bound = torch.zeros_like(total), torch.full_like(total, least(arrived.value.dtype))
        for call, known in arrived.consumers:
            again = _again(call, known)
            for position, given in enumerate(call.inputs):
                if given.value is arrived.value:
                    part = shaped(again[position], total.shape)
                    total, terms = total + part, terms + part.abs()
                    bound = bound + part.abs() * unit(call)
            for _, number, s in _towards(call, known, arrived.value):
                slack = known[number].slack  # type: ignore[union-attr]
                bound = bound if slack is None else bound + absolute(s, slack).reshape(total.shape)
        bound = bound + terms * (len(arrived.consumers) + 1) * roundoff(arrived.value.dtype)
        return worst(0, total, autograd, bound) is None


UNHOOK = "a trace follows the forward pass alone; remove the hook while tracing, or trace without check"


def _towards(call: Call, known: Sequence[Known | None], value: Value) -> list:
    return [e for e in edges(call, [k is not None for k in known]) if call.inputs[e[0]].value is value]


def _again(call: Call, known: Sequence[Known | None]) -> dict[int, Tensor]:
    """Run a call's own backward again; of one that cannot be run again, take the rule's."""
    if repeatable(call):
        return vector_product(call, [None if k is None else k.g for k in known])
    out: dict[int, Tensor] = {}
    for position, number, s in edges(call, [k is not None for k in known]):
        given = known[number]
        assert given is not None
        part = total(s, given.g).reshape(call.inputs[position].shape)
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
