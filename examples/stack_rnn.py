"""A stack RNN: predicting aⁿbⁿ, and how much of what it learns comes through the stack.

Joulin and Mikolov's network has a hidden state and, beside it, a stack of cells, on which it pushes, pops or does
nothing, each with a probability. With actions of 0 and 1 it is a Python list. While the a's of aaabbb come nothing can
be known; once b's come all can, for who has counted. The trace follows the loss at the end, where counting matters, to
the symbols. What it shows: the strongest path from each goes by the recurrent state and none by the stack, and yet the
stack carries much of what all paths carry together: many weak ways, which only a sum sees. Removing either part
shows what it is worth, which is DuSell's experiment.

    python examples/stack_rnn.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import gradtrace
from gradtrace import Through

A, B, END, HIDDEN, DEPTH = 0, 1, 2, 4, 8


def word(n: int) -> list[int]:
    """Give aⁿbⁿ, and its end."""
    return [A] * n + [B] * n + [END]


def moved(stack: Tensor, actions: Tensor, value: Tensor) -> Tensor:
    """Move all cells by the probabilities of push, pop and no-op."""
    push, pop, stay = actions
    zero = torch.zeros_like(stack[:1])
    return push * torch.cat([value, stack[:-1]]) + pop * torch.cat([stack[1:], zero]) + stay * stack


class StackRNN(nn.Module):
    """One hidden layer, and one stack of numbers."""

    def __init__(self, *, recurrent: bool = True, stack: bool = True) -> None:
        super().__init__()
        self.recurrent, self.stack = recurrent, stack
        self.input, self.output = nn.Embedding(3, HIDDEN), nn.Linear(HIDDEN, 3)
        self.state, self.top = nn.Linear(HIDDEN, HIDDEN), nn.Linear(2, HIDDEN)
        self.act, self.push = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 1)

    def forward(self, symbols: list[int], embedded: Tensor | None = None) -> Tensor:
        """Give scores of each next symbol."""
        inputs = self.input(torch.tensor(symbols)) if embedded is None else embedded
        hidden, stack, scores = inputs.new_zeros(HIDDEN), inputs.new_zeros(DEPTH), []
        for x in inputs:
            terms = [x]
            if self.recurrent:
                with gradtrace.component("recurrence"):
                    terms.append(self.state(hidden))
            if self.stack:
                with gradtrace.component("stack"):
                    terms.append(self.top(stack[:2]))
            hidden = torch.tanh(torch.stack(terms).sum(0))
            if self.stack:
                with gradtrace.component("stack"):
                    stack = moved(stack, torch.softmax(self.act(hidden), 0), torch.sigmoid(self.push(hidden)))
            scores.append(self.output(hidden))
        return torch.stack(scores)


def loss_of(model: StackRNN, n: int) -> Tensor:
    """Give the loss of what can be known: all that follows the first b."""
    symbols = word(n)
    return nn.functional.cross_entropy(model(symbols[:-1])[n:], torch.tensor(symbols[n + 1 :]))


def train(model: StackRNN, steps: int) -> float:
    """Train on n from 1 to 4; give the mean loss of the last round."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = torch.zeros(())
    for _ in range(steps):
        loss = torch.stack([loss_of(model, n) for n in range(1, 5)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def right(model: StackRNN, n: int) -> bool:
    """Tell whether all that can be known is predicted."""
    symbols = word(n)
    return model(symbols[:-1])[n:].argmax(1).tolist() == symbols[n + 1 :]


def main(picture: str | None = None) -> None:
    """Compare the stack with a list; train three networks; trace the one that has both."""
    random = torch.Generator().manual_seed(0)
    stack, held = torch.zeros(DEPTH), []
    for _ in range(40):
        action, value = int(torch.randint(3, (), generator=random)), torch.rand(1, generator=random)
        action = 1 if len(held) == DEPTH else action
        stack = moved(stack, nn.functional.one_hot(torch.tensor(action), 3).float(), value)
        held = [[value.item(), *held], held[1:], held][action]
        assert stack.tolist() == held + [0.0] * (DEPTH - len(held))
    print("with actions of 0 and 1 the stack is a list, over 40 random actions")

    lengths = {}
    for name, parts in (("both", {}), ("no stack", {"stack": False}), ("no recurrence", {"recurrent": False})):
        torch.manual_seed(1)
        model = StackRNN(**parts).double()
        loss = train(model, 100)
        lengths[name] = [n for n in range(1, 10) if right(model, n)]
        assert loss < 0.2
        assert lengths[name][:4] == [1, 2, 3, 4]
        print(f"{name:14} loss {loss:.3f}, right for n = {lengths[name]}")
        if name != "both":
            continue
        for n in (2, 4):
            embedded = model.input(torch.tensor(word(n)[:-1])).detach().requires_grad_()
            with gradtrace.record(model, names={"x": embedded}) as tape:
                last = nn.functional.cross_entropy(model(word(n)[:-1], embedded)[-1:], torch.tensor([END]))
            best = tape.trace(last).influence(["stack", "recurrence"], of="x")
            (split,) = tape.grad(last, "x", Through(("stack", "recurrence"), gradtrace.AbsSum))
            carried = split[0].sum((1, 2)) / split.sum((0, 2, 3))
            strongest = {row.component: row.weighted_share for row in best.rows}
            for i, part in enumerate(("stack", "recurrence")):
                print(f"  the end of n = {n}, through the {part:10}", end=" ")
                print(f"{strongest[part]:4.0%} of the strongest paths, {carried[i]:4.0%} of what all paths carry")
            assert carried[0] > max(0.02, strongest["stack"])
    if picture:
        _draw(picture, lengths)


def _draw(picture: str, lengths: dict[str, list[int]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 2), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, found) in enumerate(lengths.items()):
        axes.plot(found, [row] * len(found), "s", color="#1b6ca8", ms=10)
        axes.text(10, row, name, va="center", fontsize=9)
    axes.axvspan(0.5, 4.5, color="#fdf3dc")
    axes.set(
        xlabel="n, trained up to 4", yticks=[], xlim=(0.5, 13), ylim=(2.6, -0.6), title="aⁿbⁿ predicted to its end"
    )
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
