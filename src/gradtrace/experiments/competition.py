"""A model in which recurrent layers, or anything else, compete on the same word embeddings.

    words → embedding → { rnn, lstm, gru, attention, … } → average → output → next word, or what else is asked

Each component's initial weights depend on the seed and its own name only, so a model without one of them
starts out equal to the full model everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .components import build, first, label
from .seeds import seeded


class Competition(nn.Module):
    """Components in parallel between one embedding and one output layer.

    Args:
        components: names in `COMPONENTS`, or "mine.py:Conv"; each becomes the attribute of that name (`label`).
        vocabulary: how many words.
        hidden: the width of everything.
        seed: decides all initial weights.
        outputs: how many classes; by default as many as there are words.
        embedding: makes the layer from the inputs to batch × time × hidden; by default an `nn.Embedding` of the words.
        parameters: that every component should have, as nearly as its shape allows (`build`).
    """

    def __init__(
        self,
        components: Sequence[str],
        vocabulary: int,
        hidden: int,
        seed: int,
        *,
        outputs: int | None = None,
        embedding: Callable[[int], nn.Module] | None = None,
        parameters: int | None = None,
    ) -> None:
        super().__init__()
        self.components = tuple(map(label, components))
        embed = embedding or partial(nn.Embedding, vocabulary)
        self.embedding = seeded(seed, "embedding", partial(embed, hidden))
        for name, attribute in zip(components, self.components, strict=True):
            self.add_module(attribute, seeded(seed, attribute, partial(build, name, hidden, parameters)))
        self.output = seeded(seed, "output", partial(nn.Linear, hidden, outputs or vocabulary))

    def forward(self, words: Tensor) -> Tensor:
        """Score the next word at every position: batch × time → batch × time × outputs."""
        x = self.embedding(words)
        hidden = [first(self.get_submodule(name)(x)) for name in self.components]
        return self.output(sum(hidden[1:], start=hidden[0]) / len(hidden))


def next_word_loss(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    """Give the mean cross-entropy, in nats a word; words and targets are batch × time."""
    return F.cross_entropy(model(words).flatten(0, 1), targets.flatten())
