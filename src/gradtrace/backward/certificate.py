"""The certificate: the same tape under Sum must give autograd's own gradients.

It proves that everything was recorded and that every rule's derivative is right; it does not prove that the
maximum was taken right, for which the tests have brute force.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CertificateError, NotOnTape
from ..jacobians import rules
from ..kernels.reference import pull
from ..recording.record import Call, Record, Value
from ..semirings.base import AbsSum, Element, Sum
from .walk import reverse

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


@dataclass(frozen=True)
class Certificate:
    """The comparison that a trace passed: how many leaves, and the largest relative difference."""

    leaves: int
    difference: float
    tolerance: float


def difference(ours: Tensor, autograd: Tensor) -> float:
    """Give the largest difference in units of the largest entry; NaN only where both have it."""
    both = ours.isnan() & autograd.isnan()
    ours, autograd = ours.masked_fill(both, 0), autograd.masked_fill(both, 0)
    if torch.equal(ours, autograd):  # infinities included
        return 0.0
    scale = torch.maximum(ours.abs().max(), autograd.abs().max())
    worst = float(((ours - autograd).abs().max() / scale) if scale else scale)
    return worst if worst == worst else float("inf")


def certify(record: Record, loss: Value, loss_tensor: Tensor, leaves: list[tuple[Tensor, Value]]) -> Certificate:
    """Compare Sum on the tape with one ordinary backward pass, leaf by leaf.

    Raises:
        CertificateError: they differ; names the first operator call, walking back from the loss, that does.
    """
    if loss_tensor.grad_fn is None:
        raise CertificateError("the loss has no autograd graph to compare with")
    found: dict[int, Tensor] = {}

    def keep(value: Value, g: Element) -> None:
        if value.call is None:
            found[value.id] = g[0][0].to(value.dtype)

    reverse(record, loss, Sum.carrier, keep)
    tolerance = max([TOLERANCE.get(c.dtype, 1e-8) for call in record.calls for c in call.inputs], default=1e-8)
    try:
        expected = torch.autograd.grad(loss_tensor, [t for t, _ in leaves], retain_graph=True, allow_unused=True)
        expected = [None if g is None else g.to_dense() if g.layout != torch.strided else g for g in expected]
    except RuntimeError as error:
        raise CertificateError(f"no autograd graph to compare with (trace before backward()): {error}") from None
    pairs = [
        (
            value,
            found.get(value.id, torch.zeros_like(tensor)),
            torch.zeros_like(tensor) if grad is None else grad,
        )
        for (tensor, value), grad in zip(leaves, expected, strict=True)
    ]
    offs = [difference(ours, autograd) for _, ours, autograd in pairs]
    if max(offs, default=0.0) > tolerance:
        _explain(record, loss, pairs, tolerance)
        # what is left is a gradient that cancels to rounding noise, such as that of an attention's key bias
        offs = [off for off in offs if off <= tolerance]
    return Certificate(len(leaves), max(offs, default=0.0), tolerance)


def _explain(record: Record, loss: Value, pairs: list[tuple[Value, Tensor, Tensor]], tolerance: float) -> None:
    """Raise for the first leaf that differs, unless each rule is right and the difference is rounding noise."""
    culprit = first_difference(record, loss, tolerance)
    flows: dict[int, float] = {}

    def keep(value: Value, g: Element) -> None:
        if value.call is None and value.numel:
            flows[value.id] = float(g[0].max())

    reverse(record, loss, AbsSum.carrier, keep)
    # terms that cancel leave an error in proportion to their absolute sum; where others do not, it is small beside them
    rounding = 64 * _precision(record)
    largest = max(float(autograd.abs().max()) for _, _, autograd in pairs if autograd.numel())
    vanishing = largest <= rounding * max(flows.values(), default=0.0)
    allowed = float("inf") if vanishing else tolerance * largest
    for value, ours, autograd in pairs:
        off = difference(ours, autograd)
        noise = min(allowed, rounding * flows.get(value.id, 0.0))
        if off <= tolerance or (culprit is None and float((ours - autograd).abs().max()) <= noise):
            continue
        if autograd.isnan().any():
            raise CertificateError(
                f"autograd's own gradient of {value.name!r} is NaN: there is nothing to compare with"
            )
        if culprit is not None:
            where = f"the rule of {culprit.where} differs from the operator's own derivative"
        else:
            where = "every recorded operator's rule is right, so something between them was not recorded"
        raise CertificateError(
            f"the tape's gradient of {value.name!r} differs from autograd's by {off:.2g} relative: {where}"
        )


def _precision(record: Record) -> float:
    """Give the coarsest rounding step among the tape's tensors."""
    kinds = {i.dtype for call in record.calls for i in call.inputs if i.dtype.is_floating_point}
    return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float64).eps)


def first_difference(record: Record, loss: Value, tolerance: float) -> Call | None:
    """Walk back from the loss; give the first call whose structures disagree with autograd on it alone."""
    reached: set[int] = {loss.id}
    for call in reversed(record.calls):
        outputs = [n for n, v in enumerate(call.outputs) if v is not None and v.id in reached]
        if not outputs:
            continue
        reached.update(i.value.id for i in call.inputs if i.value is not None)
        if any(not agrees(call, number, tolerance) for number in outputs):
            return call
    return None


def agrees(call: Call, number: int, tolerance: float) -> bool:
    """Compare a call's structures under Sum with autograd on that call, for one random cotangent."""
    value = call.outputs[number]
    assert value is not None
    wanted = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
    try:
        tensors = [i.tensor() for i in call.inputs]
    except NotOnTape:  # the call that made one is missing, which is no fault of this call's rule
        return True
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
    with torch.enable_grad():
        leaves = [tensors[p].detach().requires_grad_() for p in wanted]
        for p, leaf in zip(wanted, leaves, strict=True):
            tensors[p] = leaf
        y = call.run(tensors)[number]
        assert y is not None
        expected = torch.autograd.grad(y, leaves, g, allow_unused=True) if y.requires_grad else [None] * len(leaves)
    ours = [torch.zeros_like(leaf) for leaf in leaves]
    for position, output, structure in rules.structures(call):
        if output == number and position in wanted:
            part = pull(structure, Sum.carrier, (g[None].to(torch.float64),))[0]
            ours[wanted.index(position)] += part.reshape(call.inputs[position].shape)
    pairs = zip(ours, expected, strict=True)
    return all(difference(a, torch.zeros_like(a) if b is None else b) <= tolerance for a, b in pairs)
