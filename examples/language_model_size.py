"""DuSell's 1.3: how large the graph of a language model is, and how short its paths are.

A recurrent model of 10,000 words and 1,000 units has 21 million parameters; the text prints 2.1. Its graph has some 30
million edges for each word, as the text says: three for each multiplication of a weight with a unit, of which a lookup
of the input's row needs none. Both are counted here on small models, where formulas that scale can be checked. What the
trace shows: paths are short all the same. The longest grows by four edges a word, while the edges grow by millions.

    python examples/language_model_size.py [PICTURE]
"""

from __future__ import annotations

import sys
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

import gradtrace
from gradtrace import Tape
from gradtrace.scalar import MaxPlus, backpropagate, best_path, draw, from_tape


class LanguageModel(nn.Module):
    """Looks a row up, mixes it with the state, and scores all words; every multiplication is a vertex of its own."""

    def __init__(self, words: int, units: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(words, units))
        self.hidden = nn.Parameter(torch.randn(units, units) / units)
        self.output = nn.Parameter(torch.randn(words, units) / units)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Give the loss of predicting each next word."""
        state, losses = torch.zeros(self.hidden.shape[0]), []
        for word, following in pairwise(words):
            state = torch.tanh(self.input[word] + (self.hidden * state).sum(1))
            losses.append(functional.cross_entropy((self.output * state).sum(1)[None], following[None]))
        return torch.stack(losses).sum()


def parameters(words: int, units: int) -> int:
    """Count them in closed form."""
    return 2 * words * units + units**2


def edges(words: int, units: int, steps: int) -> int:
    """Count them in closed form."""
    products = 3 * (units**2 + words * units)  # weight -> product, unit -> product, product -> sum
    rest = 4 * units + 2 * words + 3  # the lookup, + of two, tanh; scores to one log probability; its way to the loss
    return steps * (products + rest) - units**2  # the first state is a constant


def recorded(words: int, units: int, steps: int) -> tuple[Tape, torch.Tensor, LanguageModel]:
    """Record a small model on a few words."""
    torch.manual_seed(0)
    model = LanguageModel(words, units)
    with gradtrace.record(model) as tape:
        loss = model(torch.randint(words, (steps + 1,)))
    return tape, loss, model


def main(picture: str | None = None) -> None:
    """Count on small models, and scale."""
    lengths = []
    for steps in (1, 2, 3, 4):
        tape, loss, model = recorded(5, 3, steps)
        graph = from_tape(tape, loss, names=True, keep_zero=True)
        assert graph.number_of_edges() == edges(5, 3, steps)
        assert sum(p.numel() for p in model.parameters()) == parameters(5, 3)
        for _, _, data in graph.edges(data=True):
            data["weight"] = 1.0
        lengths.append(max(backpropagate(graph, graph.graph["loss"], MaxPlus).values()))
    with torch.device("meta"):  # no memory is needed to count
        large = LanguageModel(10_000, 1_000)
    size = sum(p.numel() for p in large.parameters())
    assert size == parameters(10_000, 1_000) == 21_000_000
    print(f"10,000 words and 1,000 units: {size / 1e6:.0f} million parameters; the text prints 2.1 million")
    a_step = edges(10_000, 1_000, 2) - edges(10_000, 1_000, 1)
    assert 30e6 < a_step < 35e6
    print(f"each word adds {a_step / 1e6:.0f} million edges; the text has 30 million")
    assert {b - a for a, b in pairwise(lengths)} == {4}
    print(
        f"the longest path of 1, 2, 3, 4 words has {', '.join(f'{n:.0f}' for n in lengths)} edges: four more for each"
    )
    if picture:
        tape, loss, _ = recorded(2, 1, 2)
        graph = from_tape(tape, loss, names=True, values=True)
        draw(graph, picture, path=best_path(graph, "hidden[0,0]", graph.graph["loss"]), title="Two words, one unit")


if __name__ == "__main__":
    main(*sys.argv[1:])
