"""A Boltzmann machine, restricted and full: learning has two phases, and they are two components of one gradient.

The log-likelihood of binary data is log Σ over hidden states (the data clamped) minus log Σ over all states. Its
gradient by a weight is the correlation of the two units with the data clamped, minus that when the machine is free:
the Hebbian rule, and unlearning. Both sums are small enough to be written out, so both phases are exact, Through
tells them apart, and each is checked against expectations by enumeration. Contrastive divergence replaces the free
phase by one step of sampling.

    python examples/boltzmann.py [PICTURE]
"""

from __future__ import annotations

import sys
from itertools import product

import torch
from torch import Tensor

import gradtrace
from gradtrace import Through

VISIBLE, HIDDEN = 4, 3
DATA = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.float64)


def states(n: int) -> Tensor:
    """Give all states of n binary units."""
    return torch.tensor(list(product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def energy(w: Tensor, v: Tensor, h: Tensor, *, full: bool) -> Tensor:
    """Give -E of states: of a restricted machine vᵀWh, of a full one sᵀWs/2 over all units s = (v, h)."""
    if not full:
        return ((v @ w) * h).sum(-1)
    s = torch.cat([v, h], -1)
    off = w - torch.diag(torch.diag(w))
    return ((s @ off) * s).sum(-1) / 2


def likelihood(w: Tensor, *, full: bool) -> Tensor:
    """Give the mean log-likelihood of the data, a component for each phase."""
    h = states(HIDDEN)
    with gradtrace.component("clamped"):
        v = DATA[:, None].expand(-1, len(h), -1)
        clamped = energy(w, v, h.expand(len(DATA), -1, -1), full=full).logsumexp(1).mean()
    with gradtrace.component("free"):
        both = states(VISIBLE + HIDDEN)
        free = energy(w, both[:, :VISIBLE], both[:, VISIBLE:], full=full).logsumexp(0)
    return clamped - free


def correlations(w: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Give E[v·hᵀ] over states weighted by the machine's own probabilities."""
    p = torch.softmax(energy(w, v, h, full=False), 0)
    return torch.einsum("s,si,sj->ij", p, v, h)


def contrastive(w: Tensor, generator: torch.Generator, samples: int) -> Tensor:
    """Give the update of contrastive divergence: data, one step to hidden units, back, and to hidden units again."""
    v = DATA.repeat(samples, 1)
    up = torch.sigmoid(v @ w)
    h = torch.bernoulli(up, generator=generator)
    v1 = torch.bernoulli(torch.sigmoid(h @ w.T), generator=generator)
    return (v.T @ up - v1.T @ torch.sigmoid(v1 @ w)) / len(v)


def main(picture: str | None = None) -> None:
    """Tell the phases apart, learn, and compare with contrastive divergence."""
    generator = torch.Generator().manual_seed(0)
    w = (0.5 * torch.randn(VISIBLE, HIDDEN, generator=generator, dtype=torch.float64)).requires_grad_()
    with gradtrace.record(names={"w": w}) as tape:
        value = likelihood(w, full=False)
    (split,) = tape.grad(value, "w", Through(("clamped", "free")))
    with torch.no_grad():
        clamped = torch.stack([correlations(w, v.expand(2**HIDDEN, -1), states(HIDDEN)) for v in DATA]).mean(0)
        both = states(VISIBLE + HIDDEN)
        free = correlations(w, both[:, :VISIBLE], both[:, VISIBLE:])
    assert torch.allclose(split[0, 0], clamped)  # + E[vh] with the data clamped
    assert torch.allclose(split[0, 1], -free)  # - E[vh] of the free machine
    said = "clamped phase {:.3f}, free phase {:.3f}, gradient {:.3f}"
    print("restricted:", said.format(clamped.norm(), free.norm(), (clamped - free).norm()))
    step = contrastive(w.detach(), generator, 4000)
    cosine = torch.cosine_similarity(step.flatten(), (clamped - free).flatten(), 0)
    assert 0.7 < cosine < 1
    print(f"contrastive divergence points the same way: cosine {cosine:.2f}")
    before = value.item()
    for _ in range(300):
        w.data += 0.5 * torch.autograd.grad(likelihood(w, full=False), w)[0]
    after = likelihood(w, full=False).item()
    assert after > before
    print(f"300 exact steps: log-likelihood {before:.3f} -> {after:.3f} for each example")
    n = VISIBLE + HIDDEN
    m = 0.3 * torch.randn(n, n, generator=generator, dtype=torch.float64)
    m = (m + m.T).requires_grad_()
    with gradtrace.record(names={"w": m}) as tape:
        value = likelihood(m, full=True)
    (split,) = tape.grad(value, "w", Through(("clamped", "free")))
    assert torch.allclose(split[0].sum(0), torch.autograd.grad(value, m)[0])
    assert split[0, 0].diagonal().abs().max() == 0  # no unit is connected with itself
    print("full:", said.format(split[0, 0].norm(), split[0, 1].norm(), split[0].sum(0).norm()))

    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 2.4), layout="constrained")
        shown = {"clamped": clamped, "free, subtracted": -free, "gradient": clamped - free}
        for axes, (title, matrix) in zip(figure.subplots(1, 3), shown.items(), strict=True):
            axes.imshow(matrix.numpy(), cmap="RdBu", vmin=-0.5, vmax=0.5)
            axes.set(title=title, xlabel="hidden", ylabel="visible")
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
