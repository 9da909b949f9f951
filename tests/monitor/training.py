"""Small programs that train, each with something that a recording might disturb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Program:
    """A model, its input for a step, and its loss; `accumulate` forward passes make a step."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    loss: Forward
    accumulate: int = 1


def rows() -> Tensor:
    return torch.randn(6, 8)


def sequences() -> Tensor:
    return torch.randn(4, 5, 8)


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def mlp(*inside: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), *inside, nn.ReLU(), nn.Linear(16, 4))


class Recurrent(nn.Module):
    """An LSTM or a GRU, and its last output."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 8) -> None:
        super().__init__()
        self.rnn, self.out = kind(width, 8, num_layers=2, batch_first=True, dropout=0.1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass, with dropout that must be drawn alike."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh()) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def attention(dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)


def causal(model: nn.Module, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    padding = torch.zeros(x.shape[:2])
    padding[0, -2:] = -torch.inf
    return model(x, src_mask=mask, src_key_padding_mask=padding)[:, 0].square().mean()


def half(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        return F.mse_loss(y.float(), torch.ones_like(y).float())


def compiled() -> nn.Module:
    torch._dynamo.reset()
    model = mlp(nn.Dropout(0.2))
    model.compile(backend="eager")
    return model


PROGRAMS = {
    "plain": Program(mlp, rows, square),
    "dropout": Program(lambda: mlp(nn.Dropout(0.5)), rows, square),
    "batch norm": Program(lambda: mlp(nn.BatchNorm1d(16)), rows, square),
    "lstm": Program(lambda: Recurrent(nn.LSTM), sequences, square),
    "gru": Program(lambda: Recurrent(nn.GRU), sequences, square),
    "accumulation": Program(lambda: mlp(nn.Dropout(0.5)), rows, lambda m, x: square(m, x) / 3, accumulate=3),
    "bf16 autocast": Program(mlp, rows, half),
    "attention": Program(lambda: attention(0.0), sequences, square),
    "attention, masks": Program(lambda: attention(0.0), sequences, causal),
    "attention, dropout": Program(lambda: attention(0.1), sequences, square),
    "attention, bf16 autocast": Program(lambda: attention(0.0), sequences, half),
    "checkpointing": Program(Checkpointed, rows, square),
    "compiled": Program(compiled, rows, square),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
