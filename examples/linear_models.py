"""Figure 11.2 with nine losses: least squares, logistic, SVMs, perceptron, Widrow-Hoff, multinomial, Weston-Watkins.

One linear node, and a loss that makes of it what it is. What the trace shows: the parameters owe each example a path,
or none. A support vector is an example from which a path of non-zero weight leads to the weights; the others are
dead. The entropy of the paths says how many examples there are in effect: all of them for least squares, few for an
SVM.

    python examples/linear_models.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, relu, softplus

import gradtrace

Loss = Callable[[Tensor, Tensor], Tensor]  # of the scores and the labels, an entry for each example
BINARY: dict[str, Loss] = {
    "least squares": lambda o, y: (y - o) ** 2,
    "logistic": lambda o, y: softplus(-y * o),  # Problem 11.2.1
    "L1-SVM": lambda o, y: relu(1 - y * o),  # Problem 11.2.2
    "L2-SVM": lambda o, y: relu(1 - y * o) ** 2,  # exercise 1
    "perceptron": lambda o, y: relu(-y * o),
    "Widrow-Hoff": lambda o, y: (1 - y * o) ** 2,  # exercise 2
}
CLASSES: dict[str, Loss] = {
    "multinomial": lambda o, c: cross_entropy(o, c, reduction="none"),  # exercise 24
    "Weston-Watkins": lambda o, c: (relu(1 + o - o.gather(1, c[:, None])) * (1 - one_hot(c, o.shape[1]))).sum(1),
    "squared": lambda o, c: ((o - one_hot(c, o.shape[1])) ** 2).sum(1),
}


def data() -> tuple[Tensor, Tensor]:
    """Draw 40 points of two classes, with a column of ones."""
    draw_from = torch.Generator().manual_seed(0)
    y = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)
    x = torch.randn(40, 2, generator=draw_from, dtype=torch.float64) + 1.2 * y[:, None]
    return torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1), y


def fit(loss: Loss, x: Tensor, y: Tensor, outputs: int | None = None, ridge: float = 0.0) -> Tensor:
    """Minimise the mean loss, and ridge · |w|²/2 of all weights but the last, by L-BFGS."""
    shape = (x.shape[1],) if outputs is None else (x.shape[1], outputs)
    w = torch.full(shape, 0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x @ w, y).mean() + ridge / 2 * w[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return w.detach()


def alive(loss: Loss, w: Tensor, x: Tensor, y: Tensor) -> tuple[list[int], float]:
    """Give the examples from which a path leads to the loss, and how many paths there are in effect (2^entropy)."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)  # where the paths of all scores meet
    with gradtrace.record(names={"shift": shift}) as tape:
        scores = shift + x @ w
        value = loss(scores, y).mean()
    (size,) = tape.grad(value, [scores], gradtrace.AbsSum)
    (entropy,) = tape.grad(value, "shift", gradtrace.Entropy)
    return size.reshape(len(x), -1).sum(1).nonzero().flatten().tolist(), 2 ** entropy.item()


def main(picture: str | None = None) -> None:
    """Fit them all; compare two with scikit-learn; count support vectors."""
    x, y = data()
    weights = {
        name: fit(loss, x, y, ridge=0.0 if name in ("least squares", "Widrow-Hoff") else 0.05)
        for name, loss in BINARY.items()
    }
    exact = LinearRegression(fit_intercept=False).fit(x.numpy(), y.numpy()).coef_
    assert torch.allclose(weights["least squares"], torch.from_numpy(exact), atol=1e-6)
    assert torch.allclose(weights["Widrow-Hoff"], weights["least squares"], atol=1e-6)  # y² = 1: it is least squares
    theirs = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-10, max_iter=1000).fit(x[:, :2].numpy(), y.numpy())
    ours = weights["logistic"]
    assert torch.allclose(ours[:2], torch.from_numpy(theirs.coef_[0]), atol=1e-4)
    assert abs(ours[2].item() - theirs.intercept_[0]) < 1e-4
    counts = {}
    for name, loss in BINARY.items():
        w = weights[name]
        examples, effective = alive(loss, w, x, y)
        counts[name] = len(examples)
        right = ((x @ w) * y > 0).double().mean()
        print(f"{name:14} {right:4.0%} right, {len(examples):2} of 40 examples alive, {effective:4.1f} in effect")
    margin = set((y * (x @ weights["L2-SVM"]) < 1).nonzero().flatten().tolist())
    assert set(alive(BINARY["L2-SVM"], weights["L2-SVM"], x, y)[0]) == margin  # the support vectors
    assert counts["least squares"] == counts["logistic"] == 40 > counts["L2-SVM"] > counts["perceptron"]
    classes = (y > 0).long() + (x[:, 0] > 2).long()
    for name, loss in CLASSES.items():
        w = fit(loss, x, classes, outputs=3, ridge=0.05)
        examples, effective = alive(loss, w, x, classes)
        right = ((x @ w).argmax(1) == classes).double().mean()
        found = f"{len(examples):2} of 40 examples alive, {effective:4.1f} of their paths in effect"
        print(f"{name:14} {right:4.0%} right, {found}")
    if picture:
        _draw(picture, x, y, weights, margin)


def _draw(picture: str, x: Tensor, y: Tensor, weights: dict[str, Tensor], margin: set[int]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes = figure.add_subplot()
    for label, colour in ((1, "#1b6ca8"), (-1, "#b2452f")):
        points = x[y == label]
        axes.scatter(points[:, 0], points[:, 1], c=colour, s=18)
    chosen = x[sorted(margin)]
    axes.scatter(
        chosen[:, 0], chosen[:, 1], s=90, facecolors="none", edgecolors="#d95f02", label="alive: support vectors"
    )
    a, b, c = weights["L2-SVM"].tolist()
    line = torch.linspace(-4, 4, 2)
    axes.plot(line, -(a * line + c) / b, color="#333333", lw=1, label="L2-SVM")
    axes.set(ylim=(-4, 4), title="Support vectors are the examples with a path")
    axes.legend(fontsize=8)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
