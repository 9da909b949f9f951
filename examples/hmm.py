"""A hidden Markov model: what semirings say of its forward algorithm is what its textbook algorithms compute.

The forward algorithm adds up the probabilities of all state sequences. Its scalar graph has one path for each
sequence, and with the loss -log p(x) the absolute weight of that path is the posterior probability p(z | x). So
    Max      is the posterior probability of the Viterbi path, and the gradient trace is the path,
    Sum      gives the posterior marginals p(z_t = i | x) = -α_t(i) · ∂loss/∂α_t(i) (forward-backward),
    TopK     gives the k best state sequences,
    Entropy  is the entropy of the posterior over sequences,
and nobody wrote a backward algorithm.

    python examples/hmm.py [PICTURE]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

import gradtrace
from gradtrace.semirings import Count, Entropy, Max


@dataclass(frozen=True)
class Model:
    """Probabilities: initial (states), transition (states × states), emission (states × symbols)."""

    initial: Tensor
    transition: Tensor
    emission: Tensor


def random_model(states: int, symbols: int, seed: int = 0) -> Model:
    """Draw a model; no two sequences are equally probable."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        return torch.softmax(2 * torch.randn(shape, generator=generator, dtype=torch.float64), -1)

    return Model(rows(states), rows(states, states), rows(states, symbols))


def forward(model: Model, symbols: list[int], start: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Give -log p(x), and α_t(i) = p(x_1 … x_t, z_t = i) for every t. `start` is 1: where all paths begin."""
    alphas: list[Tensor] = []
    arriving = start * model.initial
    for symbol in symbols:
        with gradtrace.component("emit"):
            alphas.append(arriving * model.emission[:, symbol])
        arriving = alphas[-1] @ model.transition
    return -alphas[-1].sum().log(), alphas


@dataclass(frozen=True)
class Decoded:
    """What the passes say: sequences with their posterior probabilities, best first; marginals, time × states."""

    sequences: list[tuple[list[int], float]]
    marginals: Tensor
    viterbi: float
    entropy: float
    count: int


def decode(model: Model, symbols: list[int], k: int = 3) -> Decoded:
    """Ask the forward algorithm's tape."""
    start = torch.ones((), dtype=torch.float64, requires_grad=True)
    with gradtrace.record(names={"start": start}) as tape:
        loss, alphas = forward(model, symbols, start)
    best, entropy, count = (g[0].item() for g in tape.grad(loss, "start", [Max, Entropy, Count]))
    gradients = tape.grad(loss, alphas)
    paths = tape.trace(loss).paths("start", (), k=k)
    sequences = [([s.index[0] for s in p.steps if s.module.startswith("emit")], abs(p.weight)) for p in paths]
    marginals = torch.stack([-(a * g).detach() for a, g in zip(alphas, gradients, strict=True)])
    return Decoded(sequences, marginals, best, entropy, int(count))


def main(picture: str | None = None) -> None:
    """Decode one sequence."""
    model, symbols = random_model(3, 4), [0, 2, 1, 3, 3, 0, 1, 2, 0, 0]
    found = decode(model, symbols)
    best = total = model.initial * model.emission[:, symbols[0]]
    for symbol in symbols[1:]:  # Viterbi's and the forward algorithm, as textbooks have them
        best = (best[:, None] * model.transition).amax(0) * model.emission[:, symbol]
        total = total @ model.transition * model.emission[:, symbol]
    assert torch.isclose(best.max() / total.sum(), torch.tensor(found.viterbi, dtype=torch.float64))
    assert abs(found.sequences[0][1] - found.viterbi) < 1e-12
    assert torch.allclose(found.marginals.sum(1), torch.ones(len(symbols), dtype=torch.float64))
    print(f"symbols    {symbols}")
    for states, probability in found.sequences:
        print(f"states     {states}  p(z | x) = {probability:.4f}")
    print(f"marginals  {[[round(float(p), 3) for p in row] for row in found.marginals]}")
    print(f"entropy    {found.entropy:.3f} bits over {found.count} sequences")

    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(found.marginals.T.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.plot(found.sequences[0][0], "o-", color="#d95f02", label="Max: the Viterbi path")
        axes.set(xlabel="time", ylabel="state", title="Sum: posterior marginals")
        axes.legend(fontsize=8)
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
