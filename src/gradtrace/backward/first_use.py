"""Users' rows are compared with autograd when they first serve a call: a wrong row is an error, not a number.

One random cotangent is carried back through the row's structures under Sum, and through the operator by autograd, in
float64 where the operator allows it. A wrong Jacobian agrees with probability 0. What is not seen: two edges that
should be one, since they add up to the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import CertificateError, GradtraceError, MissingRule
from ..jacobians.rules.table import Edge, Rule, differentiable
from ..kernels.reference import carried
from ..recording.record import Call, Input, Saved, Value
from ..semirings import AbsSum, Sum
from ..semirings.base import Semiring


def proven(rule: Rule, row: str) -> Rule:
    """Make a rule that is compared with autograd at the first call of each operator that it serves.

    Args:
        rule: what a user registers.
        row: says, in errors, which rule that is, and where it was registered.
    """
    known: set[str] = set()

    def proving(call: Call) -> list[Edge]:
        edges = _asked(rule, call, row)
        if call.name not in known and _comparable(call):
            _compare(rule, call, row)
            known.add(call.name)
        return edges

    return proving


def _asked(rule: Rule, call: Call, row: str) -> list[Edge]:
    try:
        return list(rule(call))
    except GradtraceError:
        raise
    except Exception as error:
        raise MissingRule(f"{row} cannot serve {call.where}: {type(error).__name__}: {error}") from error


def _comparable(call: Call) -> bool:
    """Tell whether autograd follows the call, and running it again gives what it gave."""
    draws = torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ())
    followed = any(y is not None and y.differentiable for y in call.outputs)
    return followed and not draws and bool(differentiable(call))


def _compare(rule: Rule, call: Call, row: str) -> None:
    """Carry one cotangent back in both ways.

    Raises:
        CertificateError: they differ.
    """
    call = in_double(call)
    generator, positions = torch.Generator().manual_seed(0), differentiable(call)
    tensors = [x.tensor() for x in call.inputs]
    with torch.enable_grad():
        for p in positions:
            tensors[p] = tensors[p].clone().requires_grad_()
        ys = {n: y for n, y in enumerate(call.run(tensors)) if y is not None and y.requires_grad}
        seeds = {n: torch.randn(y.shape, generator=generator, dtype=torch.float64) for n, y in ys.items()}
        given = [seeds[n].to(y) for n, y in ys.items()]
        theirs = torch.autograd.grad(list(ys.values()), [tensors[p] for p in positions], given, allow_unused=True)
    edges = _asked(rule, call, row)
    for p, their in zip(positions, theirs, strict=True):
        x = tensors[p].detach()
        expected = torch.zeros_like(x) if their is None else their
        try:
            ours, scale = (_carried(s, edges, p, seeds, x) for s in (Sum, AbsSum))
        except GradtraceError:
            raise
        except Exception as error:
            raise MissingRule(f"{row} cannot serve {call.where}: {type(error).__name__}: {error}") from error
        if not _agree(ours, expected.double(), scale, torch.finfo(x.dtype).eps):
            raise CertificateError(
                f"{row} does not hold for {call.where}: towards argument {p} it gives {_some(ours)}, "
                f"autograd {_some(expected)}; choose another row (docs/howto-rule.md)"
            )


def _carried(semiring: Semiring, edges: list[Edge], position: int, seeds: dict[int, Tensor], x: Tensor) -> Tensor:
    """Carry the seeds back to one argument, under a semiring."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    for at, number, structure in edges:
        if at == position and number in seeds:
            total = total + carried(structure, semiring.carrier, seeds[number].unsqueeze(0)).reshape(x.shape)
    return total


def _agree(ours: Tensor, theirs: Tensor, scale: Tensor, eps: float) -> bool:
    """Compare up to rounding, of which there is a share of the absolute weight of all edges."""
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return False
    bound = eps**0.5 * torch.maximum(scale, theirs.abs())
    return bool(((ours - theirs).abs() <= bound)[finite].all())


def _some(t: Tensor) -> str:
    return ", ".join(f"{v:.4g}" for v in t.flatten()[:3].tolist()) + (", …" if t.numel() > 3 else "")


def in_double(call: Call) -> Call:
    """Give the same call in float64; the call itself where its operator runs in its own precision only."""
    if not hasattr(call.op, "_schema") or call.complex:
        return call
    inputs = tuple(_double(x) for x in call.inputs)
    outputs = tuple(y if y is None or not y.dtype.is_floating_point else _value(y) for y in call.outputs)
    found = replace(call, inputs=inputs, outputs=outputs, results=())
    try:
        given = found.run()
    except (RuntimeError, TypeError, ValueError):
        return call
    kinds = [y.dtype is torch.float64 for y in given if y is not None and y.dtype.is_floating_point]
    return found if all(kinds) else call


def _double(x: Input) -> Input:
    if not x.dtype.is_floating_point:
        return x
    data = x.tensor().double()
    return Input(x.value, x.shape, data.stride(), 0, torch.float64, x.device, Saved.own(data))


def _value(y: Value) -> Value:
    return Value(y.id, y.shape, torch.float64, y.name, y.differentiable)
