"""What several tests ask of a recorded program, with PyTorch's own autograd as the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from programs import Program
from torch import Tensor, nn

from gradtrace import AbsSum, GradtraceError, Max, Sum, Tape, Trace, record
from gradtrace.queries.paths import Path
from gradtrace.semirings.base import Count

F64 = {"dtype": torch.float64}


def leaf(*shape: int, seed: int = 0, low: float | None = None) -> Tensor:
    """Give a random float64 leaf; with `low`, uniform in [low, low + 1)."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    draw = torch.randn(shape, generator=generator, **F64)
    return (draw if low is None else torch.rand(shape, generator=generator, **F64) + low).requires_grad_()


def recorded(
    program: Callable[..., Tensor], leaves: Mapping[str, Tensor], examples: Tensor | None = None
) -> tuple[Tape, Tensor]:
    with record(names=leaves, examples=examples) as tape:
        loss = program(**leaves)
    return tape, loss


def recorded_by_example(program: Program) -> tuple[Tape, Tensor] | None:
    """Record a drawn program whose leaf "x" has a row for each example; None where the loss does not depend on it."""
    leaves = program.leaves()
    with record(names=leaves, examples=leaves["x"]) as tape:
        loss = program.run(leaves)
    try:
        tape.trace(loss).forest("best", per_example=True)
    except GradtraceError:
        return None
    return tape, loss


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def autograd(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)}


def run(tape: Tape, loss: Tensor, leaves: Mapping[str, Tensor], semiring: object = Sum) -> dict[str, Tensor]:
    found = tape.grad(loss, list(leaves.values()), semiring, allow_unused=True)  # type: ignore[arg-type]
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)}


def relative(ours: Tensor, expected: Tensor) -> float:
    """Give the largest difference, in units of the largest expected entry."""
    if expected.numel() == 0:
        return 0.0
    worst, scale = float((ours - expected).abs().max()), float(expected.abs().max())
    return worst / scale if scale else (0.0 if worst == 0 else float("inf"))


def assert_sum_is_autograd(tape: Tape, loss: Tensor, leaves: Mapping[str, Tensor], tolerance: float = 1e-10) -> None:
    ours, expected = run(tape, loss, leaves), autograd(loss, leaves)
    off = {n: relative(ours[n], expected[n]) for n in leaves}
    assert {n: d for n, d in off.items() if not d <= tolerance} == {}
    for name, tensor in leaves.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype)


def assert_semirings_agree(tape: Tape, loss: Tensor, leaves: Mapping[str, Tensor], slack: float = 1e-10) -> None:
    """Check what holds on every graph: |Σ w| ≤ Σ |w|, max |w| ≤ Σ |w| ≤ count · max |w|, and who has a path."""
    total, flow, best, count = (run(tape, loss, leaves, s) for s in (Sum, AbsSum, Max, Count))
    for name in leaves:
        above = flow[name] * (1 + slack)
        assert (total[name].abs() <= above).all(), name
        assert (best[name] <= above).all(), name
        assert (flow[name] <= count[name] * best[name] * (1 + slack)).all(), name
        assert count[name].isfinite().all(), name
        assert torch.equal(count[name] > 0, best[name] > 0), name


def some_scalars(tensor: Tensor, number: int, seed: int = 0) -> list[tuple[int, ...]]:
    picks = torch.randint(max(1, tensor.numel()), (number,), generator=torch.Generator().manual_seed(seed))
    flat = sorted({int(p) for p in picks}) if tensor.numel() else []
    return [tuple(int(i) for i in torch.unravel_index(torch.tensor(p), tensor.shape)) for p in flat]


def rounding(trace: Trace, steps: int) -> float:
    """How far log2 of a product may be off: where leaves are float32, weights are rounded to it, once a step."""
    double = all(leaf.dtype == torch.float64 for leaf in trace.tape.leaves.values())
    return 1e-9 if double else 1e-9 + steps * 2.0**-22


def assert_paths_have_their_strength(trace: Trace, leaves: Mapping[str, Tensor], number: int = 2) -> list[Path]:
    """Check that the product of a best path's local derivatives, each by autograd, is the strength."""
    paths = []
    for name, tensor in leaves.items():
        strength = trace.strength[name]
        for index in some_scalars(tensor, number):
            if strength[index] > -torch.inf:
                path = trace.path(name, index)
                off = abs(path.log2_weight - float(strength[index]))
                assert off < rounding(trace, len(path.steps)), f"{name}{index}"
                paths.append(path)
    return paths
