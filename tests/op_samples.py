"""PyTorch's own operator samples as programs: record one, and hold every number against autograd.

The oracles are written from the definitions: the gradient is `torch.autograd.grad` of the whole sample, and a
call's Jacobian is autograd's, row by row, for that one recorded operator and that one argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import gradtrace
from gradtrace import AbsSum, GradtraceError, Max, Sum, Tape
from gradtrace.errors import NotANumber
from gradtrace.jacobians import rules
from gradtrace.jacobians.structure import Chain, LowRank
from gradtrace.kernels.reference import pull
from gradtrace.recording.record import Call

MOST_ENTRIES = 400  # of a Jacobian that is checked under Max and AbsSum
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}
NEAR = 1e-12  # relative: closer than this, rounding decides which of two wins


@dataclass
class Found:
    """What checking samples found: counts of outcomes and of calls, and what went wrong, in words."""

    samples: Counter[str] = field(default_factory=Counter)  # passed, refused, nan, constant, wrong
    served: Counter[tuple[str, str]] = field(default_factory=Counter)  # (exact or fallback, operator) → calls
    recorded: Counter[str] = field(default_factory=Counter)  # rule → calls, also those that the loss does not need
    checked: Counter[str] = field(default_factory=Counter)  # operator → Jacobians compared under Max and AbsSum
    refused: Counter[str] = field(default_factory=Counter)  # reasons
    wrong: list[str] = field(default_factory=list)


def leaves_of(given: Any) -> Any:
    """Make leaves of the tensors that require grad (a sample may give views of them)."""

    def leaf(t: Any) -> Any:
        follow = isinstance(t, Tensor) and t.requires_grad and not t.is_leaf
        return t.detach().requires_grad_() if follow else t

    return tree_map(leaf, given)


def is_complex_leaf(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_complex() and t.requires_grad and t.layout is torch.strided


def from_pairs(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Callable[..., Any], Any, Any]:
    """Let complex leaves come from pairs of real numbers, which are leaves instead."""
    flags = tree_map(is_complex_leaf, (args, kwargs))
    if not any(tree_leaves(flags)):
        return function, args, kwargs

    def pairs(t: Any) -> Any:
        return real(t.detach()).clone().requires_grad_() if is_complex_leaf(t) else t

    def program(*given: Any, **named: Any) -> Any:
        numbers = tree_map(lambda t, pair: torch.view_as_complex(t) if pair else t, (given, named), flags)
        return function(*numbers[0], **numbers[1])

    return program, *tree_map(pairs, (args, kwargs))


def scalar(result: Any, generator: torch.Generator) -> Tensor | None:
    """Weigh and add up all results that autograd follows; None where there is none."""
    total = None
    for y in tree_leaves(result):
        if not isinstance(y, Tensor) or not y.requires_grad:
            continue
        if y.is_complex():
            y = torch.view_as_real(y.resolve_conj())
        weight = torch.rand(y.shape, generator=generator, dtype=torch.float64) + 0.5
        part = (y * weight.to(y.dtype)).sum().to(torch.float64)
        total = part if total is None else total + part
    return total


def check(
    function: Callable[..., Any], args: Any, kwargs: Any, found: Found, about: str, model: nn.Module | None = None
) -> None:
    """Record one sample and compare it with autograd: as a whole and, unless it is a model, call by call."""
    function, args, kwargs = from_pairs(function, leaves_of(args), leaves_of(kwargs))
    tensors = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad}
    leaves = {f"leaf{i}": t for i, t in enumerate(tensors.values())}
    tape = None
    try:
        with gradtrace.record(model, names=leaves) as tape:
            loss = scalar(function(*args, **kwargs), torch.Generator().manual_seed(0))
        leaves.update(model.named_parameters() if model is not None else ())
        if loss is None or not leaves:
            found.samples["constant"] += 1
            return
        found.recorded.update(rules.key(call) for call in tape.calls)
        compare_sum(tape, loss, list(leaves.values()), found, about)
        if model is not None:
            found.served.update((rules.served_by(call), call.base) for call in tape.record.before(tape.value_of(loss)))
        else:
            found.wrong += [f"{about}: {p}" for p in check_calls(tape, loss, found)]
    except NotANumber as error:
        found.samples["nan" if tape is not None and undefined(tape) else "wrong"] += 1
        found.wrong += [] if tape is not None and undefined(tape) else [f"{about}: {error}"]
    except GradtraceError as error:
        found.samples["refused"] += 1
        found.refused[f"{type(error).__name__}: {error}"[:200]] += 1
    except Exception as error:  # anything but the documented errors is a finding
        found.samples["wrong"] += 1
        found.wrong.append(f"{about}: {type(error).__name__}: {str(error)[:300]}")


def undefined(tape: Tape) -> bool:
    """Tell whether an operator really gave NaN, or autograd's derivative of it is NaN."""
    for call in tape.calls:
        positions = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
        tensors = [i.tensor().clone() for i in call.inputs]
        with torch.enable_grad():
            leaves = [tensors[p].requires_grad_() for p in positions]
            ys = [y for y in call.run(tensors) if y is not None and y.requires_grad]
        if not ys or not leaves:
            continue
        grads = torch.autograd.grad(ys, leaves, [torch.ones_like(y) for y in ys], allow_unused=True)
        if any(bool(t.isnan().any()) for t in (*ys, *grads) if t is not None):
            return True
    return False


def compare_sum(tape: Tape, loss: Tensor, leaves: list[Tensor], found: Found, about: str) -> None:
    ours = tape.grad(loss, leaves, Sum, allow_unused=True)
    expected = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    dtypes = {real_kind(i.dtype) for call in tape.calls for i in call.inputs} | {t.dtype for t in leaves}
    tolerance = max(TOLERANCE.get(d, 1e-8) for d in dtypes)
    for leaf, a, b in zip(leaves, ours, expected, strict=True):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        if not same(a, b, tolerance) and not cancels(tape, loss, leaf, a - b, dtypes):
            found.samples["wrong"] += 1
            ops = [f"{c.base}[{rules.served_by(c)}]" for c in tape.calls][:8]
            found.wrong.append(f"{about}: Sum {a.flatten()[:4].tolist()} is not {b.flatten()[:4].tolist()} {ops}")
            return
    found.samples["passed"] += 1


def cancels(tape: Tape, loss: Tensor, leaf: Tensor, off: Tensor, dtypes: set[torch.dtype]) -> bool:
    """Tell whether a difference is rounding noise of paths that cancel; a NaN among the derivatives is an error."""
    tape.grad(loss, [leaf], Max, allow_unused=True)
    flows = tape.grad(loss, list(tape.leaves), AbsSum, allow_unused=True)
    largest = max(float(f.max()) for f in flows if f is not None and f.numel())
    coarsest = max(torch.finfo(d).eps for d in dtypes if d.is_floating_point)
    return bool((off.abs() <= 4096 * coarsest * (largest or 1.0)).all())


def same(a: Tensor, b: Tensor, tolerance: float, floor: float = 0.0) -> bool:
    """Tell whether two tensors differ by less than a share of their largest finite entry."""
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale + floor, equal_nan=True)


def check_calls(tape: Tape, loss: Tensor, found: Found) -> Iterator[str]:
    """Compare what Max and AbsSum do to random cotangents at each call with brute force over its Jacobian."""
    for call in tape.record.before(tape.value_of(loss)):
        positions = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
        if not positions:
            continue
        found.served[rules.served_by(call), call.base] += 1
        structures = rules.structures(call)
        for position in positions:
            for number, y in enumerate(call.outputs):
                if y is None or not y.differentiable:
                    continue
                if y.numel * call.inputs[position].value.numel > MOST_ENTRIES or random(call):
                    continue
                mine = [s for p, n, s in structures if (p, n) == (position, number)]
                problem = check_jacobian(call, position, number, mine)
                found.checked[call.base] += 1
                if problem:
                    yield f"{call.base} argument {position} result {number}: {problem}"


def random(call: Call) -> bool:
    """Tell whether an operator drew numbers: run again, it has other derivatives."""
    return torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ())


def real_kind(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def real(t: Tensor) -> Tensor:
    """View a complex tensor as pairs of real numbers."""
    return torch.view_as_real(t.resolve_conj().resolve_neg()) if t.is_complex() else t


def jacobian(call: Call, position: int, number: int) -> Tensor:
    """Write ∂y/∂x of one call out, y × x, by one backward pass for each scalar of y.

    The other results get a gradient of 0, not none at all: layer norm's backward ignores the gradients of its
    statistics where there is none of the result.
    """
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        x = tensors[position].clone().requires_grad_()
        tensors[position] = laid_out(x, call.inputs[position]) if "as_strided" in call.base else x
        results = call.run(tensors)
    rows = torch.zeros(real(results[number]).numel(), real(x).numel(), dtype=torch.float64)
    if not results[number].requires_grad:
        return rows
    ys = [results[number]] + [y for n, y in enumerate(results) if n != number and y is not None and y.requires_grad]
    ys = [real(y) for y in ys]
    for i in range(len(rows)):
        seeds = [torch.zeros_like(y) for y in ys]
        seeds[0][torch.unravel_index(torch.tensor(i), seeds[0].shape)] = 1
        (row,) = torch.autograd.grad(ys, x, seeds, retain_graph=True, allow_unused=True)
        if row is not None:
            rows[i] = real(row).flatten()
    return rows


def laid_out(x: Tensor, at: Any) -> Tensor:
    """Copy a tensor into a storage that is laid out as the call's argument was."""
    reach = at.offset + sum((n - 1) * t for n, t in zip(at.shape, at.stride, strict=True)) + 1
    flat = torch.zeros(max(0, reach), dtype=x.dtype)
    return flat.as_strided(at.shape, at.stride, at.offset).copy_(x)


def check_jacobian(call: Call, position: int, number: int, structures: list[Any]) -> str | None:
    """Say how Max or AbsSum differ from brute force over the dense Jacobian; None where they don't."""
    dense = jacobian(call, position, number).abs()
    if not bool(dense.isfinite().all()):
        return None
    y = call.outputs[number]
    generator = torch.Generator().manual_seed(1)
    g = torch.rand(y.numel, generator=generator, dtype=torch.float64) + 0.1
    dtypes = {real_kind(i.dtype) for i in call.inputs} | {y.dtype}
    floor = 1e-13  # what cancels exactly in a rule is noise of this size in autograd
    tolerance = max(TOLERANCE.get(d, 1e-8) for d in dtypes)
    offered = dense * g[:, None]  # y × x
    total = carried(AbsSum, structures, g, y.shape, dense.shape[1])[0]
    if not same(total, offered.sum(0), tolerance, floor):
        return f"AbsSum {total[:5].tolist()} is not {offered.sum(0)[:5].tolist()}"
    best, ids = carried(Max, structures, g, y.shape, dense.shape[1])
    want = offered.amax(0) if len(offered) else torch.zeros(dense.shape[1], dtype=torch.float64)
    if not same(best, want, tolerance, floor):
        return f"Max {best[:5].tolist()} is not {want[:5].tolist()}"
    near = max(NEAR, tolerance if tolerance > 1e-8 else 0)
    rounds = any(isinstance(s, LowRank | Chain) for s in structures)
    return winners(offered, want, ids, near, ties=not rounds)


def winners(offered: Tensor, want: Tensor, ids: Tensor, near: float, ties: bool) -> str | None:
    """Say which winning index is wrong; `ties` says whether equal products are equal for the rule as well."""
    for j, top in enumerate(want.tolist()):
        if top < max(1e-12 * float(want.max()), 1e-14):
            continue
        close = (offered[:, j] >= top * (1 - near)).nonzero().flatten().tolist()
        exact = (offered[:, j] == top).nonzero().flatten().tolist()
        i = int(ids[j])
        if i not in close or (ties and len(close) == len(exact) and i != exact[0]):
            return f"winner of {j} is {i}, not one of {exact[:5]}"
    return None


def carried(semiring: Any, structures: list[Any], g: Tensor, shape: Any, numel: int) -> tuple[Tensor, Tensor]:
    """Pull one cotangent through the structures: (values, winning ids), flat."""
    carrier = semiring.carrier
    start = carrier.weigh(g.reshape(1, *shape), carrier.one(torch.ones(1, *shape, dtype=torch.float64)))
    start = carrier.seed(start, torch.arange(g.numel()).reshape(1, *shape))
    out = None
    for s in structures:
        part = tuple(p.reshape(-1) for p in pull(s, carrier, start))
        out = part if out is None else carrier.plus(out, part)
    if out is None:
        return torch.zeros(numel, dtype=torch.float64), torch.full((numel,), -1)
    return carrier.plain(out), out[-1]
