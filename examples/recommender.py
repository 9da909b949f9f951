"""A recommender: factors of a matrix with holes, what each of them owes to which rating, and a cold start.

Only the ratings that are there are in the loss. Without holes the factorisation is the SVD (`matrix_factorisation.py`);
with them, at the optimum each user's factors are the ridge regression of the user's ratings on the factors of the
items, as scikit-learn finds it. What the trace shows: a user's factors have one path for each rating, as many in effect
as 2^entropy; and a new user has none. Such a row is dead, which no gradient of 0 tells apart from one that has learned.

    python examples/recommender.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from sklearn.linear_model import Ridge
from torch import Tensor

import gradtrace
from gradtrace import Count, Entropy, Max

USERS, ITEMS, RANK, RIDGE = 14, 9, 2, 0.3


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Draw tastes of rank two, which of them are rated, and which of these are held out."""
    random = torch.Generator().manual_seed(5)
    tastes = [torch.randn(n, RANK, generator=random, dtype=torch.float64) for n in (USERS, ITEMS)]
    ratings = tastes[0] @ tastes[1].T + 0.1 * torch.randn(USERS, ITEMS, generator=random, dtype=torch.float64)
    draw = torch.rand(USERS, ITEMS, generator=random)
    seen, held_out = draw < 0.65, draw > 0.85
    seen[-1] = held_out[-1] = False  # a new user
    return ratings, seen, held_out


def error(u: Tensor, v: Tensor, ratings: Tensor, seen: Tensor) -> Tensor:
    """Give the squared error of the ratings that are there."""
    user, item = seen.nonzero().unbind(1)
    return ((u[user] * v[item]).sum(1) - ratings[user, item]).square().sum()


def fit(ratings: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the error and a ridge by L-BFGS."""
    random = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, RANK, generator=random, dtype=torch.float64).requires_grad_() for n in (USERS, ITEMS))
    optimizer = torch.optim.LBFGS(
        [u, v], max_iter=2000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = error(u, v, ratings, seen) + RIDGE * (u.square().sum() + v.square().sum())
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return u.detach(), v.detach()


def main(picture: str | None = None) -> None:
    """Fit, compare with scikit-learn, and ask whom each user owes what."""
    ratings, seen, held_out = data()
    u, v = fit(ratings, seen)
    for user in range(USERS - 1):
        there = seen[user]
        theirs = Ridge(RIDGE, fit_intercept=False).fit(v[there].numpy(), ratings[user, there].numpy()).coef_
        assert torch.allclose(u[user], torch.from_numpy(theirs), atol=1e-5)
    rms = [((p - ratings)[held_out].square().mean().sqrt()).item() for p in (u @ v.T, ratings[seen].mean())]
    assert rms[0] < rms[1] / 2
    print(f"each user is a ridge regression on the items; ratings held out: error {rms[0]:.2f}, mean's {rms[1]:.2f}")

    start = u.clone()
    start[-1] = 0.5  # for the new user, some guess
    leaf = (start + 0.2 * torch.randn(u.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    with gradtrace.record(names={"u": leaf}) as tape:
        loss = error(leaf, v, ratings, seen)
    (count,), (entropy,), (size,) = tape.grad(loss, "u", [Count, Entropy, Max])
    assert torch.equal(count[:, 0], seen.sum(1).double())
    print("user  ratings  in effect  owes most to")
    for user in (0, 1, 2, USERS - 1):
        if not count[user, 0]:
            assert size[user].max() == 0
            print(f"{user:4}  {0:7}          0  nobody: no path leads from here")
            continue
        (path,) = tape.trace(loss).paths("u", (user, 0), k=1)
        rated = seen.nonzero()[next(step.index[0] for step in path.steps if "index" in step.operator)]
        assert rated[0] == user
        print(f"{user:4}  {int(count[user, 0]):7}  {2 ** entropy[user, 0].item():9.1f}  item {rated[1].item()}")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3), layout="constrained")
        for axes, shown, title in zip(
            figure.subplots(1, 2),
            (ratings.masked_fill(~seen, float("nan")), u @ v.T),
            ("rated", "predicted"),
            strict=True,
        ):
            axes.imshow(shown.T.numpy(), cmap="RdBu", vmin=-3, vmax=3)
            axes.set(title=title, xlabel="user", ylabel="item")
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
