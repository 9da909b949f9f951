"""A sequence-to-sequence LSTM: an encoder of four steps gives its state to a decoder of four.

What an expert expects: the encoder's words reach the loss through the decoder's state only. The cell state is the way
without squashing: at each step's sum, paths of the encoder come by the forget gate's product, not by input and
candidate. The loss adds up the decoder's steps, and the first, which is nearest, gets most of what the encoder knows.

    gradtrace trace examples/pages/seq2seq.py:build
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Translator(nn.Module):
    """Two LSTM cells, run step by step."""

    def __init__(self, words: int = 20, size: int = 16) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, size), nn.Embedding(words, size)
        self.encoder, self.decoder = nn.LSTM(size, size, batch_first=True), nn.LSTM(size, size, batch_first=True)
        self.out = nn.Linear(size, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Give logits for each word of the target; both are batch × time."""
        _, state = self.encoder(self.source(source))
        found, _ = self.decoder(self.target(target), state)
        return self.out(found)


def build() -> tuple[nn.Module, list[Any], Any]:
    """Give the model, a batch of sentences and their translations, and the loss of the next word."""
    torch.manual_seed(0)
    model = Translator()
    with torch.no_grad():  # as is usual, the forget gates begin open
        for part in ("encoder", "decoder"):
            model.get_parameter(f"{part}.bias_ih_l0")[16:32] = 2.0
    batch = torch.randint(20, (4, 4)), torch.randint(20, (4, 5))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        source, target = batch
        return F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())

    return model, [batch], loss
