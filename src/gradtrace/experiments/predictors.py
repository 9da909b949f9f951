"""What may foretell how much a component matters: traces of the network, and what one would use instead.

Each is a number for each component, read off one forward pass of the full network on held-out examples. None of them
is a damage: they are compared with what training without the component does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import record
from ..semirings import AbsSum, Entropy, Sum, Through
from .components import first
from .plugged import Plugged
from .tasks import IGNORED, Batch, Task

TRACES = ("best", "best_weighted", "greedy", "greedy_weighted", "through", "through_abs", "flow", "entropy")
BASELINES = (
    "parameter_gradient",
    "output_gradient",
    "activation_gradient",
    "conductance",
    "switch_off",
    "parameters",
)
GROUP = "embedding*"
STEPS = 16  # of the integral of conductance
Numbers = dict[str, list[float]]  # predictor → a number for each component


def predictors(model: Plugged, task: Task, batch: Batch, held_out: Batch) -> Numbers:
    """Compute all predictors of each component.

    Args:
        model: with all its components.
        batch: the examples that are traced and differentiated.
        held_out: those on which components are switched off.
    """
    model.eval()
    return traced(model, task, batch) | gradients(model, task, batch) | {
        "conductance": conductance(model, task, batch),
        "switch_off": switch_off(model, task, held_out),
        "parameters": [float(sum(p.numel() for p in _part(model, name).parameters())) for name in model.components],
    }  # fmt: skip


def _part(model: Plugged, name: str) -> nn.Module:
    return model.get_submodule(name)


def traced(model: Plugged, task: Task, batch: Batch) -> Numbers:
    """Compute what the paths from the embedding's parameters say."""
    with record(model, examples=(batch.inputs, batch.targets)) as tape:
        loss = task.loss(model(batch.inputs), batch)
    trace = tape.trace(loss)
    found: Numbers = {}
    for kind in ("best", "greedy"):
        rows = trace.influence(model.components, of=GROUP, kind=kind).rows
        found[kind] = [row.share for row in rows]
        found[f"{kind}_weighted"] = [row.weighted_share for row in rows]
    leaves = [name for name in tape.leaves if name.startswith("embedding")]
    splits = [Through(model.components, semiring) for semiring in (Sum, AbsSum)]
    parts, flow = (
        torch.cat([g[0].flatten(1) for g in split], 1).double() for split in tape.grad(loss, leaves, splits)
    )  # components × scalars, of paths that cross
    found["through"] = parts.norm(dim=1).tolist()
    found["through_abs"] = parts.abs().sum(1).tolist()
    found["flow"] = flow.sum(1).tolist()
    own = {name: [leaf for leaf in tape.leaves if leaf.startswith(f"{name}.")] for name in model.components}
    bits = iter(tape.grad(loss, [leaf for leaves in own.values() for leaf in leaves], Entropy, allow_unused=True))
    found["entropy"] = [_mean([g for _ in leaves if (g := next(bits)) is not None]) for leaves in own.values()]
    return found


def _mean(tensors: Sequence[Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).double().mean()) if tensors else 0.0


@contextmanager
def outputs(model: Plugged) -> Iterator[dict[str, Tensor]]:
    """Keep what each component gives, inside the block."""
    kept: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, given, result: kept.__setitem__(name, first(result))

    hooks = [_part(model, name).register_forward_hook(keep(name)) for name in model.components]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def losses(scores: Tensor, task: Task, batch: Batch) -> Tensor:
    """Give each example's share of the batch's mean loss; they add up to it."""
    each = F.cross_entropy(
        task.read(scores).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return each.view(len(batch), -1).sum(1) / (batch.targets != IGNORED).sum()


def gradients(model: Plugged, task: Task, batch: Batch) -> Numbers:
    """Compute what one backward pass says: norms, and activation × gradient (Michel et al., 2019)."""
    with outputs(model) as kept:
        loss = task.loss(model(batch.inputs), batch)
    owned = [list(_part(model, name).parameters()) for name in model.components]
    given = [kept[name] for name in model.components]
    grads = torch.autograd.grad(loss, [*given, *(p for own in owned for p in own)], materialize_grads=True)
    at, rest = grads[: len(given)], iter(grads[len(given) :])
    return {
        "parameter_gradient": [_norm([next(rest) for _ in own]) for own in owned],
        "output_gradient": [_norm([g]) for g in at],
        "activation_gradient": [
            float((y.detach() * g).flatten(1).sum(1).abs().mean()) for y, g in zip(given, at, strict=True)
        ],
    }


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt()) if tensors else 0.0


def conductance(model: Plugged, task: Task, batch: Batch, steps: int = STEPS) -> list[float]:
    """Compute the mean over examples of |conductance| of each component's result (Dhamdhere et al., 2018).

    ∫ ∂ℓ/∂y(α) · dy(α), y the result at α times the embedding's, α from 0 to 1: left gradients × differences.
    """
    x = model.embedding(batch.inputs).detach()
    scaled = torch.cat([x * (n / steps) for n in range(steps + 1)])
    long = Batch(batch.inputs.repeat(steps + 1, *[1] * (batch.inputs.dim() - 1)), batch.targets.repeat(steps + 1, 1))
    with outputs(model) as kept:
        each = losses(model.after(scaled), task, long) * (steps + 1)  # of one batch
    given = [kept[name] for name in model.components]
    grads = torch.autograd.grad(each.sum(), given, materialize_grads=True)
    found = []
    for y, g in zip(given, grads, strict=True):
        values, slopes = (t.detach().unflatten(0, (steps + 1, len(batch))) for t in (y, g))
        found.append(float((slopes[:-1] * values.diff(dim=0)).sum(0).flatten(1).sum(1).abs().mean()))
    return found


@torch.no_grad()
def switch_off(model: Plugged, task: Task, held_out: Batch) -> list[float]:
    """Compute by how much the held-out loss rises when a component is left out, the rest as it is."""
    full = float(task.loss(model(held_out.inputs), held_out))
    return [
        float(task.loss(model(held_out.inputs, {*model.components} - {name}), held_out)) - full
        for name in model.components
    ]
