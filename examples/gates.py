"""Gates: how far back a gradient reaches in an RNN, an LSTM and a GRU, and the way that it takes.

An LSTM's cell goes from step to step by a product with its forget gate, c' = f·c + i·g, and a GRU's state by z·h. So
one path from the distant past is known in closed form: the product of these gates along the way. What the trace
shows: where an LSTM's gates start open, this one is the strongest of all paths, to the last digit, from every unit,
and much is left of it after 40 steps. Where they start half shut it is so at first, and then from fewer and fewer
units: what is strongest there, as in a plain RNN, goes by other ways, through tanh after tanh, and is next to nothing.

    python examples/gates.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import gradtrace
from gradtrace import Max

SIZE, LAGS = 6, (1, 5, 10, 20, 40)


def lstm(forget: float) -> nn.LSTM:
    """Make an LSTM whose forget gates have this bias."""
    torch.manual_seed(0)
    made = nn.LSTM(3, SIZE).double()
    for name, value in (("bias_ih_l0", forget), ("bias_hh_l0", 0.0)):
        made.get_parameter(name).data[SIZE : 2 * SIZE] = value
    return made


def scores(model: nn.RNNBase, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Give what the gates are made of, in their order: of the input, and of the state."""
    w = {name: p.detach() for name, p in model.named_parameters()}
    return (w["weight_ih_l0"] @ x + w["bias_ih_l0"]).split(SIZE), (w["weight_hh_l0"] @ h + w["bias_hh_l0"]).split(SIZE)


def forgotten(model: nn.LSTM, xs: Tensor) -> Tensor:
    """Go through an LSTM by hand; give the product of each unit's forget gates over all steps."""
    h = c = torch.zeros(SIZE, dtype=torch.float64)
    product = torch.ones_like(h)
    for x in xs:
        i, f, g, o = (a + b for a, b in zip(*scores(model, x, h), strict=True))
        f = torch.sigmoid(f)
        c = f * c + torch.sigmoid(i) * torch.tanh(g)
        h, product = torch.sigmoid(o) * torch.tanh(c), product * f
    return product


def updated(model: nn.RNNBase, xs: Tensor) -> Tensor:
    """Go through a GRU by hand; give the product of each unit's update gates."""
    h = torch.zeros(SIZE, dtype=torch.float64)
    product = torch.ones_like(h)
    for x in xs:
        (r, z, n), (r_h, z_h, n_h) = scores(model, x, h)
        z = torch.sigmoid(z + z_h)
        h = (1 - z) * torch.tanh(n + torch.sigmoid(r + r_h) * n_h) + z * h
        product = product * z
    return product


def strongest(model: nn.RNNBase, xs: Tensor) -> Tensor:
    """Give, for each unit, the strongest path from the first state to the last."""
    start = torch.zeros(1, SIZE, dtype=torch.float64, requires_grad=True)
    with gradtrace.record(names={"start": start}) as tape:
        if isinstance(model, nn.LSTM):
            _, (_, last) = model(xs, (torch.zeros_like(start), start))
        else:
            _, last = model(xs, start)
        loss = last.sum()
    return tape.grad(loss, "start", Max)[0][0]


def main(picture: str | None = None) -> None:
    """Compare them over growing lags."""
    xs = torch.randn(max(LAGS), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    models: dict[str, nn.RNNBase] = {
        "RNN": nn.RNN(3, SIZE).double(), "GRU": nn.GRU(3, SIZE).double(), "LSTM": lstm(0), "LSTM, open": lstm(3)
    }  # fmt: skip
    reach: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for name, model in models.items():
        for lag in LAGS:
            found = strongest(model, xs[:lag])
            reach.setdefault(name, []).append(found.mean().item())
            if isinstance(model, nn.RNN):
                continue
            known = forgotten(model, xs[:lag]) if isinstance(model, nn.LSTM) else updated(model, xs[:lag])
            assert (found >= known * (1 - 1e-9)).all()  # it is one of the paths
            share = torch.isclose(found, known, rtol=1e-9, atol=0).double().mean().item()
            shares.setdefault(name, []).append(share)
        print(f"{name:10}", "  ".join(f"{lag}: {v:.2g}" for lag, v in zip(LAGS, reach[name], strict=True)))
    for name, found in shares.items():
        said = "  ".join(f"{lag}: {share:.0%}" for lag, share in zip(LAGS, found, strict=True))
        print(f"the product of the gates is the strongest path, in the {name}: {said} of units")
    assert shares["LSTM, open"] == [1] * len(LAGS)
    assert shares["LSTM"][0] == 1 > shares["LSTM"][-1]
    assert reach["LSTM, open"][-1] > 0.1 > 1e-6 > max(reach[name][-1] for name in ("RNN", "GRU", "LSTM"))
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3), layout="constrained")
        axes = figure.add_subplot()
        for name, weights in reach.items():
            axes.semilogy(LAGS, weights, "o-", label=name)
        axes.set(xlabel="steps back", ylabel="weight", title="The strongest path from the past")
        axes.legend(fontsize=8)
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
