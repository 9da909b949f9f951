"""A language model in which recurrent layers, or anything else, compete on the same word embeddings.

    words → embedding → { rnn, lstm, gru, attention, … } → average → output → next word

Each component's initial weights depend on the seed and its own name only, so a model without one of them
starts out equal to the full model everywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head self-attention to the words so far, with sinusoidal positions (Vaswani et al., 2017)."""

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = max(n for n in range(1, heads + 1) if hidden % n == 0)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: x and the result are batch × time × hidden."""
        batch, time, hidden = x.shape
        mixed = self.qkv(x + positions(time, hidden))
        # batch × time × (3 · heads · width) → three of batch × heads × time × width
        q, k, v = mixed.reshape(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).reshape(batch, time, hidden))


def positions(time: int, hidden: int) -> Tensor:
    """Give sin and cos of each position at wavelengths from 2π to 20,000π: time × hidden."""
    rate = torch.exp(torch.arange(0, hidden, 2) * (-torch.tensor(10_000.0).log() / hidden))
    angle = torch.arange(time)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :hidden]


def _recurrent(kind: Callable[..., nn.Module], hidden: int) -> nn.Module:
    return kind(hidden, hidden, batch_first=True)


# To add a competitor, add a row: from the width to a module from batch × time × width to the same shape
# (or to a tuple that begins with it, as recurrent layers give).
COMPONENTS: dict[str, Callable[[int], nn.Module]] = {
    "rnn": partial(_recurrent, nn.RNN),
    "lstm": partial(_recurrent, nn.LSTM),
    "gru": partial(_recurrent, nn.GRU),
    "attention": CausalAttention,
}


class Competition(nn.Module):
    """Components in parallel between one embedding and one output layer.

    Args:
        components: names in `COMPONENTS`; each becomes the attribute of that name.
        vocabulary: how many words.
        hidden: the width of everything.
        seed: decides all initial weights.
    """

    def __init__(self, components: Sequence[str], vocabulary: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.components = tuple(components)
        self.embedding = _seeded(seed, "embedding", partial(nn.Embedding, vocabulary, hidden))
        for name in components:
            self.add_module(name, _seeded(seed, name, partial(COMPONENTS[name], hidden)))
        self.output = _seeded(seed, "output", partial(nn.Linear, hidden, vocabulary))

    def forward(self, words: Tensor) -> Tensor:
        """Score the next word at every position: batch × time → batch × time × vocabulary."""
        x = self.embedding(words)
        results = [self.get_submodule(name)(x) for name in self.components]
        hidden = [r[0] if isinstance(r, tuple) else r for r in results]
        return self.output(sum(hidden[1:], start=hidden[0]) / len(hidden))


def _seeded(seed: int, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, name))
        return make()


def derived_seed(seed: int, name: str) -> int:
    """Give a seed for one named part, independent of all other parts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def next_word_loss(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    """Give the mean cross-entropy, in nats a word; words and targets are batch × time."""
    return F.cross_entropy(model(words).flatten(0, 1), targets.flatten())
