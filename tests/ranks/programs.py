"""A program that trains on several processes as on one, and what each of them is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLES = 7
# how many examples each rank has, by how many ranks there are: uneven, and some have none
SIZES = {1: [7], 2: [5, 2], 3: [4, 0, 3], 4: [1, 3, 0, 3]}
ASKED = ["blocks.0", "blocks.1", "blocks.*", "aten::relu", "head"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(x)))


class Model(nn.Module):
    """Residual blocks over the mean of some words; a weight that is used twice, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(11, 6), nn.ModuleList([Block(), Block()])
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words).mean(1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.frozen(x))


def model() -> Model:
    torch.manual_seed(1)
    return Model().double()


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    """Give the words and targets of all examples."""
    drawn = torch.Generator().manual_seed(step)
    return torch.randint(11, (EXAMPLES, 4), generator=drawn), torch.randint(11, (EXAMPLES,), generator=drawn)


def part(rank: int, ranks: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Give those of one rank."""
    x, y = batch(step)
    sizes = SIZES[ranks]
    return x.split(sizes)[rank], y.split(sizes)[rank]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="sum")
