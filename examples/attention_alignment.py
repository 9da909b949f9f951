"""Attention as alignment: translating a sentence into its reversal, where Bahdanau's weights and the trace agree.

A decoder attends to source words by additive attention and says each of them, last first. Attention is called
interpretable because its weights align target words with source words; the trace aligns them without being told that
there is attention: the strongest path from the loss of a target word leads to one source word. What else it shows: the
two ways by which attention learns. Through the values it learns what to say, through the weights where to look. How
much of a gradient takes either changes while it trains.

    python examples/attention_alignment.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import gradtrace
from gradtrace import AbsSum, Max, Through

WORDS, LENGTH, SIZE = 10, 6, 16


class Translator(nn.Module):
    """Additive attention from positions of the target to words of the source."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.where = nn.Embedding(WORDS, SIZE), nn.Embedding(LENGTH, SIZE)
        self.position = nn.Embedding(LENGTH, SIZE)
        self.query, self.key, self.score = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 1)
        self.say = nn.Linear(SIZE, WORDS)

    def encode(self, source: Tensor) -> Tensor:
        """Give a state for each source word: the word, and where it stands."""
        return self.words(source) + self.where.weight

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Give scores (sentences × target × words), and the alignment (sentences × target × source)."""
        with gradtrace.component("weights"):
            query = self.query(self.position.weight)[None, :, None]
            scores = self.score(torch.tanh(query + self.key(states)[:, None])).squeeze(-1)
            weights = torch.softmax(scores, -1)
        return self.say(weights @ states), weights


def trace(model: Translator, source: Tensor) -> tuple[Tensor, Tensor, float]:
    """Give the alignment of attention and of the strongest paths, and the share of what goes through the weights."""
    states = model.encode(source).detach().requires_grad_()
    with gradtrace.record(names={"states": states}) as tape:
        scores, weights = model(states)
        losses = nn.functional.cross_entropy(scores.transpose(1, 2), source.flip(1), reduction="none")
        by_target = [losses[:, i].sum() for i in range(LENGTH)]
        loss = losses.sum()
    strongest = torch.stack([tape.grad(value, "states", Max)[0].amax(2).argmax(1) for value in by_target], 1)
    ((through, around),) = tape.grad(loss, "states", Through(("weights",), AbsSum))
    return weights, strongest, (through.sum() / (through + around).sum()).item()


def main(picture: str | None = None) -> None:
    """Train, and compare both alignments with the truth."""
    torch.manual_seed(0)
    model, random = Translator(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    held_out = torch.randint(WORDS, (32, LENGTH), generator=random)
    truth = torch.arange(LENGTH).flip(0).expand(32, LENGTH)
    traced: list[tuple[Tensor, Tensor]] = []
    agree: list[float] = []
    for step in range(301):
        if step in (0, 100, 300):
            weights, strongest, share = trace(model, held_out)
            traced.append((weights, strongest))
            agree = [(a == truth).double().mean().item() for a in (weights.argmax(2), strongest)]
            print(f"step {step:3}: right by attention {agree[0]:4.0%}, by the trace {agree[1]:4.0%};", end=" ")
            print(f"{share:.0%} of what paths carry goes through the weights")
        source = torch.randint(WORDS, (64, LENGTH), generator=random)
        scores, _ = model(model.encode(source))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), source.flip(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert agree[0] == 1
    assert agree[1] > 0.9
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), layout="constrained")
        weights, strongest = traced[-1]
        paths = nn.functional.one_hot(strongest, LENGTH).double().mean(0)
        for axes, shown, title in zip(figure.subplots(1, 2), (weights.mean(0), paths),
                                      ("attention", "strongest paths"), strict=True):  # fmt: skip
            axes.imshow(shown.detach().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set(title=title, xlabel="source word", ylabel="target word")
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
