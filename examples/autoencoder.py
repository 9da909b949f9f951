"""An autoencoder with tied weights on digits: principal components, and which units the ReLU has killed.

x ≈ W·Wᵀx with one matrix, used twice. Without an activation the best W spans the principal components, which
scikit-learn confirms. Each entry of W has a gradient by encoding and one by decoding: they are components of one
gradient, and where training begins they are far from equal. With a ReLU between them a unit can be off for all digits:
no path leads from its column by either use, and it will never learn again, while the loss says nothing of it.

    python examples/autoencoder.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor

import gradtrace
from gradtrace import Max, Through

UNITS = 6


def data() -> Tensor:
    """Give 400 digits of 8 × 8 pixels, around their mean."""
    x = torch.from_numpy(load_digits(return_X_y=True)[0][:400]).double() / 16
    return x - x.mean(0)


def error(w: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Give the mean squared error of an autoencoder whose decoder is its encoder, transposed."""
    with gradtrace.component("encoder"):
        hidden = activation(x @ w)
    with gradtrace.component("decoder"):
        back = hidden @ w.T
    return (x - back).square().sum(1).mean()


def fit(w: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Minimise by L-BFGS."""
    w = w.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([w], max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = error(w, x, activation)
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return w.detach()


def uses(w: Tensor, x: Tensor) -> tuple[float, float]:
    """Give the norms of W's gradient by encoding, and by decoding."""
    w = w.clone().requires_grad_()
    with gradtrace.record(names={"w": w}) as tape:
        loss = error(w, x, torch.Tensor.clone)
    ((encoding, decoding),) = tape.grad(loss, "w", Through(("encoder",)))  # the decoder's use goes around
    assert torch.allclose(encoding + decoding, tape.grad(loss, "w")[0])
    return encoding.norm().item(), decoding.norm().item()


def main(picture: str | None = None) -> None:
    """Find the principal components, tell the uses apart, and look for dead units."""
    x = data()
    random = torch.Generator().manual_seed(0)
    start = 0.1 * torch.randn(x.shape[1], UNITS, generator=random, dtype=torch.float64)
    w = fit(start, x, torch.Tensor.clone, 300)
    theirs = PCA(UNITS).fit(x.numpy())
    best = (x - torch.from_numpy(theirs.inverse_transform(theirs.transform(x.numpy())))).square().sum(1).mean().item()
    ours = error(w, x, torch.Tensor.clone).item()
    assert abs(ours - best) < 1e-6 * best
    basis = torch.linalg.svdvals(torch.from_numpy(theirs.components_) @ w)
    assert torch.allclose(basis, torch.ones(UNITS, dtype=torch.float64), atol=1e-3)  # and W is orthonormal by itself
    print(f"linear: error {ours:.6f}, that of {UNITS} principal components {best:.6f}; the same subspace")
    for said, at in (("where training begins", 3 * start), ("at the optimum", w)):
        print("gradient of W {}: by encoding {:.4f}, by decoding {:.4f}".format(said, *uses(at, x)))

    start[:, 0] = -0.3  # a unit that starts unluckily
    pixels = x - x.min()  # brightness, not below 0
    relu = fit(start, pixels, torch.relu, 60).requires_grad_()
    with gradtrace.record(names={"w": relu}) as tape:
        loss = error(relu, pixels, torch.relu)
    (size,) = tape.grad(loss, "w", Max)
    dead = [k for k in range(UNITS) if size[:, k].max() == 0]
    off = (pixels @ relu <= 0).all(0).nonzero().flatten().tolist()
    assert dead == off
    assert 0 in dead
    print(f"with a ReLU: error {loss.item():.4f}; no path leads from units {dead}: they are off for all 400 digits")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 1.5), layout="constrained")
        for k, axes in enumerate(figure.subplots(1, UNITS)):
            axes.imshow(relu.detach()[:, k].reshape(8, 8).numpy(), cmap="RdBu")
            axes.set(title="dead" if k in dead else f"unit {k}", xticks=[], yticks=[])
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
