"""A Bayesian network, the burglar alarm: where Max is the most probable explanation, and where it is not.

Summing variables out computes the probability of what was observed, here that John and Mary call. Its derivatives are
posteriors: P(burglary | calls) = 0.284. A path goes through one term of each sum on its way and has those beside it as
factors, summed already. So from a leaf whose paths pass all the sums, Max is the most probable explanation of
everything, and its path is that explanation; from another leaf of the same graph it maximises over some variables and
sums over the rest. Where two sums run side by side no path passes both: then max must be in the forward pass, too.

    python examples/bayesian_network.py [PICTURE]
"""

from __future__ import annotations

import sys
from itertools import product

import torch
from torch import Tensor

import gradtrace
from gradtrace import Max
from gradtrace.scalar import Graph, best_path, draw

B = torch.tensor([0.999, 0.001], dtype=torch.float64)  # burglary: no, yes
E = torch.tensor([0.998, 0.002], dtype=torch.float64)  # earthquake
A_ON = torch.tensor([[0.001, 0.29], [0.94, 0.95]], dtype=torch.float64)  # alarm, given burglary and earthquake
A = torch.stack([1 - A_ON, A_ON], -1)
J = torch.tensor([[0.95, 0.05], [0.10, 0.90]], dtype=torch.float64)  # John calls, given the alarm
M = torch.tensor([[0.99, 0.01], [0.30, 0.70]], dtype=torch.float64)  # Mary calls


def joint(b: int, e: int, a: int, j: int, m: int) -> float:
    """Give the probability of everything."""
    return (B[b] * E[e] * A[b, e, a] * J[a, j] * M[a, m]).item()


def calls(leaves: dict[str, Tensor]) -> Tensor:
    """Sum earthquake, alarm and burglary out, in this order; give -log P(both call)."""
    with gradtrace.component("earthquake"):
        weighed = leaves["E"][None, :, None] * A
    alarm = weighed.sum(1)  # burglary × alarm
    with gradtrace.component("alarm"):
        weighed = alarm * leaves["called"]
    given_burglary = weighed.sum(1)
    with gradtrace.component("burglary"):
        weighed = leaves["B"] * given_burglary
    return -weighed.sum().log()


def explanations(leaf: str, names: tuple[str, ...]) -> tuple[list[int], float]:
    """Give the strongest path from a leaf: the states of the variables on it, and its weight times the leaf."""
    values = {"E": E.clone(), "called": J[:, 1] * M[:, 1], "B": B.clone()}
    values[leaf].requires_grad_()
    with gradtrace.record(names={leaf: values[leaf]}) as tape:
        loss = calls(values)
    (size,) = tape.grad(loss, leaf, Max)
    start = int((size * values[leaf].detach()).argmax())
    path = tape.trace(loss).paths(leaf, (start,), k=1)[0]
    where = {step.module.split(":")[0]: step.index for step in path.steps}
    states = {"earthquake": ("earthquake", 1), "alarm": ("alarm", 1), "burglary": ("burglary", 0)}
    found = [where[states[name][0]][states[name][1]] for name in names]
    return found, (abs(path.weight) * values[leaf][start]).item()


def most_probable(names: tuple[str, ...]) -> tuple[list[int], float]:
    """Enumerate: maximise over some of burglary, earthquake and alarm, and sum over the others, given both calls."""
    order = ("burglary", "earthquake", "alarm")
    total: dict[tuple[int, ...], float] = {}
    for b, e, a in product((0, 1), repeat=3):
        key = tuple((b, e, a)[order.index(name)] for name in names)
        total[key] = total.get(key, 0.0) + joint(b, e, a, 1, 1)
    best = max(total, key=lambda key: total[key])
    return list(best), total[best] / sum(total.values())


def side_by_side(over: str) -> Tensor:
    """Give alarm, John and Mary, nobody observed, merged by sum or by max; `start` is the leaf of the alarm's prior."""
    alarm = torch.einsum("b,e,bea->a", B, E, A)
    merge = (lambda t, axis: t.sum(axis)) if over == "sum" else (lambda t, axis: t.amax(axis))
    return merge(alarm * merge(J, 1) * merge(M, 1), 0)


def main(picture: str | None = None) -> None:
    """Ask three leaves of one graph for the strongest path."""
    prior = B.clone().requires_grad_()
    with gradtrace.record(names={"B": prior}) as tape:
        loss = calls({"E": E, "called": J[:, 1] * M[:, 1], "B": prior})
    (g,) = tape.grad(loss, "B")
    posterior = (-g * B)[1].item()
    evidence = sum(joint(b, e, a, 1, 1) for b, e, a in product((0, 1), repeat=3))
    assert abs(loss.neg().exp().item() - evidence) < 1e-12
    assert abs(posterior - 0.284) < 5e-4  # Russell and Norvig
    print(f"P(burglary | both call) = -B·∂loss/∂B = {posterior:.3f}")
    for leaf, names in (
        ("E", ("burglary", "earthquake", "alarm")),
        ("called", ("burglary", "alarm")),
        ("B", ("burglary",)),
    ):
        states, weight = explanations(leaf, names)
        expected, probability = most_probable(names)
        assert states == expected
        assert abs(weight - probability) < 1e-12
        said = ", ".join(f"{name} {'yes' if s else 'no'}" for name, s in zip(names, states, strict=True))
        print(f"from {leaf:6} the strongest path is {said}: {weight:.3f}")

    everything = max(sum(joint(b, e, a, j, m) for b, e in product((0, 1), repeat=2))
                     for a, j, m in product((0, 1), repeat=3))  # fmt: skip
    assert abs(side_by_side("sum").item() - 1) < 1e-12
    assert abs(side_by_side("max").item() - everything) < 1e-12
    largest = torch.einsum("b,e,bea->a", B, E, A).max().item()  # where John and Mary are summed, beside each other
    print(f"alarm, John and Mary: the best path under sums has {largest:.4f}; max going forward, too, {everything:.4f}")
    if picture:
        g = Graph()
        g.inputs(E=E, A=A[:, :, 1] * (J[1, 1] * M[1, 1]), B=B)
        g.add("f", lambda e, a: a @ e, "E", "A")
        g.add("p", lambda f, b: f @ b, "f", "B")
        draw(g, picture, path=best_path(g, "E[0]", "p"), title="Alarm on: summing out earthquake, then burglary")


if __name__ == "__main__":
    main(*sys.argv[1:])
