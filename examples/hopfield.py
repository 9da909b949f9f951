"""A Hopfield network: the Hebbian rule is a gradient, a recall is a descent, and the trace names the memory.

Binary units, symmetric weights, energy -sᵀWs/2. The gradient of the stored patterns' energy by W is their outer
products: the Hebbian rule is one step of gradient descent from 0. Units that are set one by one never raise the
energy; the states of least energy, found among all 65,536, are the patterns and their negatives. A binary unit has no
derivative, and so no path. With tanh for the sign, and unrolled in time, it has: each memory is a component. By
absolute weight the paths through all memories are equally strong, as all their entries are ±1; in the sum those
through the others cancel, and what is left names the memory.

    python examples/hopfield.py [PICTURE]
"""

from __future__ import annotations

import sys
from itertools import pairwise, product

import torch
from scipy.linalg import hadamard
from torch import Tensor

import gradtrace
from gradtrace import Through

N, STEPS = 16, 3
PATTERNS = torch.from_numpy(hadamard(N)[[3, 5, 14]]).double()  # at right angles to each other


def energy(w: Tensor, s: Tensor) -> Tensor:
    """Give the energy of states."""
    return -((s @ w) * s).sum(-1) / 2


def recall(w: Tensor, state: Tensor) -> tuple[Tensor, list[float]]:
    """Set unit after unit until nothing changes; give the energies on the way, too."""
    state, energies = state.clone(), [energy(w, state).item()]
    while True:
        before = state.clone()
        for unit in range(N):
            state[unit] = 1.0 if w[unit] @ state >= 0 else -1.0
            energies.append(energy(w, state).item())
        if torch.equal(state, before):
            return state, energies


def unrolled(start: Tensor) -> Tensor:
    """Recall with soft units, a component for each memory."""
    state = start
    for _ in range(STEPS):
        terms = []
        for k, pattern in enumerate(PATTERNS):
            with gradtrace.component(f"memory {k}"):
                terms.append(pattern * (pattern @ state) / N)
        state = torch.tanh(2 * torch.stack(terms).sum(0))
    return state


def main(picture: str | None = None) -> None:
    """Store, recall, and ask which memory it was."""
    w = torch.zeros(N, N, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy(w, PATTERNS).sum(), w)
    hebb = -gradient
    assert torch.equal(2 * hebb, PATTERNS.T @ PATTERNS)
    weights = (2 * hebb / N).fill_diagonal_(0)
    print("one step of gradient descent on the patterns' energy, from 0, is the Hebbian rule")

    states = torch.tensor(list(product((1.0, -1.0), repeat=N)), dtype=torch.float64)
    energies = energy(weights, states)
    least = {tuple(s.tolist()) for s in states[energies <= energies.min() + 1e-9]}
    assert least == {tuple((sign * p).tolist()) for p in PATTERNS for sign in (1, -1)}
    runs = []
    for k, pattern in enumerate(PATTERNS):
        start = pattern.clone()
        start[[k, 3 * k + 7]] *= -1  # two units are wrong
        found, path = recall(weights, start)
        assert torch.equal(found, pattern)
        assert all(b <= a + 1e-12 for a, b in pairwise(path))
        runs.append(path)
        print(f"pattern {k}: recalled with two units wrong; energy {path[0]:.2f} -> {path[-1]:.2f}, never rising")
    print(
        f"of {2**N:,} states {len(least)} have the least energy, {energies.min():.2f}: the patterns and their negatives"
    )

    for k, pattern in enumerate(PATTERNS):
        start = (0.6 * pattern).clone()
        start[[0, 7]] *= -1
        start.requires_grad_()
        with gradtrace.record(names={"s": start}) as tape:
            overlap = unrolled(start) @ pattern
        memories = tuple(f"memory {i}" for i in range(len(PATTERNS)))
        (sizes,), (split,) = tape.grad(overlap, "s", [Through(memories, gradtrace.AbsSum), Through(memories)])
        carried = sizes[0].sum(1) / sizes.sum((0, 2))
        assert torch.allclose(carried, carried[0])
        net = split[0] @ pattern / (split.sum(0) @ pattern)  # of the part that keeps the pattern up
        assert net.argmax() == k
        print(f"recalling {k}: through each memory {carried[0]:.0%} of what paths carry; of the sum", end=" ")
        print(", ".join(f"{share:.0%}" for share in net.tolist()))
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for k, path in enumerate(runs):
            axes.step(range(len(path)), path, where="post", label=f"pattern {k}")
        axes.set(xlabel="units set", ylabel="energy", title="A recall never raises the energy")
        axes.legend(fontsize=8)
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
