# ---
# jupytext:
#   formats: py:percent
# kernelspec:
#   display_name: Python 3
#   name: python3
# ---

# %% [markdown]
# # 4. While it trains
#
# A single trace is a photograph of one step. A `Monitor` takes one every few steps while a model trains, and
# changes no bit of the training. The network has a skip connection around its inner layer, and learns a function
# that a linear map cannot: which of two numbers is larger in size.

# %%
import tempfile
from pathlib import Path

import torch
from torch import nn

from gradtrace.monitor import Monitor


class Net(nn.Module):
    """An inner layer, and a way around it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        """Give a score for each of the two."""
        h = self.first(x)
        return self.head(h + self.inner(h))


torch.manual_seed(0)
model, folder = Net(), Path(tempfile.mkdtemp())
optimizer = torch.optim.Adam(model.parameters(), 0.02)
monitor = Monitor(model, every=50, of="first*", components=["inner"], folder=folder)
for _ in range(301):
    x = torch.randn(64, 2)
    with monitor.step(examples=x):
        loss = nn.functional.cross_entropy(model(x), x.abs().argmax(1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
monitor.close()
assert loss.item() < 0.35

# %% [markdown]
# Each traced step is a line of `history.jsonl`. We draw which share of the first layer's paths goes through the
# inner layer, and how much of their weight:

# %%
import json

import matplotlib.pyplot as plt

text = (folder / "history.jsonl").read_text()
lines = [json.loads(line) for line in text.splitlines()]
traces = [line for line in lines if line["kind"] == "trace"]
rows = [next(r for r in t["influence"] if r["component"] == "inner") for t in traces]
at = [t["step"] for t in traces]
assert at == [0, 50, 100, 150, 200, 250, 300]
assert rows[-1]["share"] > rows[0]["share"]
plt.figure(figsize=(6, 3))
plt.plot(at, [r["share"] for r in rows], "o-", label="share of paths through inner")
plt.plot(at, [r["weighted_share"] for r in rows], "o--", label="weighted")
plt.plot(at, [t["loss"] for t in traces], color="gray", label="loss")
plt.xlabel("step")
_ = plt.legend()

# %% [markdown]
# At first most paths take the way around: the linear part is there from the beginning. As the network learns what
# a linear map cannot do, its strongest paths move into the inner layer.
#
# `monitor.report()` draws all of it as a page ([Reading a report](../report.md)). With `at_most=0.05` a monitor
# keeps to a share of the training's time; [While a model trains](../monitor.md) has transformers, Lightning and
# dashboards.
