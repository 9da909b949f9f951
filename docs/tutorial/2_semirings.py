# ---
# jupytext:
#   formats: py:percent
# kernelspec:
#   display_name: Python 3
#   name: python3
# ---

# %% [markdown]
# # 2. One pass, many questions
#
# Backpropagation merges with + where paths meet, and multiplies along them. Any pair of operations that obeys the
# same laws can stand for the two; such a pair is called a **semiring**. Each answers another question about the
# same paths. We ask them of a small network.

# %%
import torch
from torch import nn

import gradtrace

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
x = torch.randn(1, 3, dtype=torch.float64)
with gradtrace.record(model) as tape:  # writes down every operator that runs
    loss = model(x).exp().sum()

# %% [markdown]
# `tape.grad` is `torch.autograd.grad` with a semiring. Under *Sum* it is the gradient:

# %%
(gradient,) = tape.grad(loss, "0.weight")
loss.backward()
assert torch.allclose(gradient, model[0].weight.grad)
gradient

# %% [markdown]
# Under *AbsSum* every path counts with its absolute value, so nothing cancels; under *Max* only the strongest
# counts; *Count* counts them; *Entropy* says in bits how evenly they share.

# %%
names = ["sum", "abssum", "max", "count", "entropy"]
answers = tape.grad(loss, "0.weight", names)
for name, (answer,) in zip(names, answers, strict=True):
    print(f"{name:8} {[round(v, 3) for v in answer[0].tolist()]}")
total, strongest = answers[1][0], answers[2][0]
assert (gradient.abs() <= total + 1e-12).all()
assert (strongest <= total + 1e-12).all()

# %% [markdown]
# In this network a weight of the first layer reaches the loss through one hidden unit, so it has a single path:
# |gradient|, AbsSum and Max agree, and there is no entropy. An input has a path through each of the four units:

# %%
x.requires_grad_()
with gradtrace.record(model, names={"x": x}) as tape:
    loss = model(x).exp().sum()
for name, (answer,) in zip(names, tape.grad(loss, "x", names), strict=True):
    print(f"{name:8} {[round(v, 3) for v in answer[0].tolist()]}")
paths = tape.grad(loss, "x", "count")[0]
assert (paths == 4).all()

# %% [markdown]
# Between AbsSum and Max lies a family: Power(p), the p-th root of Σ |weight|^p. As p grows it falls towards Max.

# %%
previous = torch.full_like(x, torch.inf)
for p in (1, 2, 4, 8, 16):
    (answer,) = tape.grad(loss, "x", f"power:{p}")
    print(p, [round(v, 4) for v in answer[0].tolist()])
    assert (answer <= previous + 1e-12).all()
    previous = answer
(strongest,) = tape.grad(loss, "x", "max")
assert (strongest <= previous + 1e-12).all()

# %% [markdown]
# Paths can also be had one by one:

# %%
trace = tape.trace(loss)
paths = trace.paths("x", (0, 1), k=4)
for path in paths:
    print(f"|weight| = 2^{path.log2_weight:.2f}")
(total,) = tape.grad(loss, "x", "abssum")
assert abs(sum(2**p.log2_weight for p in paths) - total[0, 1].item()) < 1e-9

# %% [markdown]
# All of them are described in [Semirings](../semirings.md), and [a semiring of your own](../howto-semiring.md)
# takes six lines.
#
# Next: [where the gradient of a network goes](3_network.py).
