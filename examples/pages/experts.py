"""A mixture of experts: two blocks with four experts each, of which a router picks two for every word.

What an expert expects: experts are loaded unevenly. In the first block the router's bias keeps expert 3 out: no word
goes there, and its parameters are dead. Paths of the words go around the experts, which begin small.

    gradtrace trace examples/pages/experts.py:build
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """A router, and experts of which it picks some."""

    def __init__(self, size: int, count: int, picked: int) -> None:
        super().__init__()
        self.picked, self.router = picked, nn.Linear(size, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix the experts' results, words × size, by their shares."""
        shares, numbers = self.router(x).softmax(-1).topk(self.picked)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            word, place = (numbers == number).nonzero(as_tuple=True)
            out = out.index_add(0, word, shares[word, place, None] * expert(x[word]))
        return out


class Model(nn.Module):
    """An embedding, blocks of a norm and experts around which there is a skip, and an output."""

    def __init__(self, words: int = 30, size: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(blocks))
        self.blocks = nn.ModuleList(Experts(size, 4, 2) for _ in range(blocks))
        self.out = nn.Linear(size, words)

    def forward(self, words: Tensor) -> Tensor:
        """Give logits for each word of batch × time."""
        x = self.embed(words).flatten(0, 1)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.out(x)


def build() -> tuple[nn.Module, list[Tensor], Any]:
    """Give the model, a batch of words, and the loss."""
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.get_parameter("blocks.0.router.bias")[3] = -10.0
    words = torch.randint(30, (4, 8))
    return model, [words], lambda model, words: F.cross_entropy(model(words), words.flatten())
