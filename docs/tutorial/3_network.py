# ---
# jupytext:
#   formats: py:percent
# kernelspec:
#   display_name: Python 3
#   name: python3
# ---

# %% [markdown]
# # 3. Where the gradient of a network goes
#
# Two recurrent layers stand beside each other: a plain RNN and an LSTM read the same word embeddings, and their
# outputs are added. Through which of them do the embeddings learn?

# %%
import torch
from torch import nn

import gradtrace


class Both(nn.Module):
    """Two recurrent layers beside each other."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.rnn = nn.RNN(8, 8, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.out = nn.Linear(8, 12)

    def forward(self, words):
        """Predict the word after the last."""
        h = self.embedding(words)
        return self.out(self.rnn(h)[0][:, -1] + self.lstm(h)[0][:, -1])


torch.manual_seed(0)
model, words, following = Both(), torch.randint(12, (16, 6)), torch.randint(12, (16,))
with gradtrace.record(model, examples=words) as tape:
    loss = nn.functional.cross_entropy(model(words), following)
trace = tape.trace(loss, check=True)
table = trace.influence(["rnn", "lstm"], of="embedding*")
table

# %% [markdown]
# For each of the 16 examples and each number of the embedding, the trace is one **path** to that example's loss:
# the strongest. `share` says how many of those cross the component, `weighted` counts strong paths for more.
# *Dead* are pairs without a path: an example has six words of twelve at most.
#
# `check=True` has compared the tape with autograd first, operator by operator.

# %%
rows = {row.component: row for row in table.rows}
assert abs(rows["rnn"].share + rows["lstm"].share - 1) < 1e-9  # one of the two
assert rows["rnn"].share < 0.5 < rows["rnn"].weighted_share
print(trace.strongest(1, of="embedding*")[0])

# %% [markdown]
# By number the two share the paths about equally; by weight most of it is the RNN's, so the strong paths are
# there. The path above starts at the last word of an example and is short. An untrained LSTM's gates are half
# open, and each halves what passes. Training changes that, so it takes traces during training to compare the two
# ([the next notebook](4_training.py)).
#
# ## Best and greedy
#
# The *best* path is the strongest of all. The *greedy* one follows, at every step, the edge with the largest
# |weight · gradient|: where most of the summed gradient goes. They need not agree:

# %%
greedy = trace.influence(["rnn", "lstm"], of="embedding*", kind="greedy")
greedy

# %% [markdown]
# ## Dead, or cut off?
#
# A parameter without a gradient has a reason. `why` looks for it:

# %%
with gradtrace.record(model, examples=words) as tape:
    h = model.embedding(words)
    state = model.rnn(h)[0][:, -1].detach()  # a mistake
    state = state + model.lstm(h)[0][:, -1]
    loss = nn.functional.cross_entropy(model.out(state), following)
why = tape.trace(loss).why("rnn.weight_hh_l0")
assert why.cause == "cut"
print(why)

# %% [markdown]
# [Why a parameter gets no gradient](../why.md) lists all causes; [components](../howto-component.md) says what
# else can stand in place of "rnn" and "lstm"; and `trace.report("report.html")` draws all of it ([Reading a
# report](../report.md)).
