"""What a row of the zoo is: a model with random weights, one loss on random inputs, and which tensors are the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2


@dataclass(frozen=True)
class Subject:
    """A model, its loss, and the tensors whose first dimension enumerates the examples, if there are examples."""

    model: nn.Module
    loss: Callable[[], Tensor]
    examples: tuple[Tensor, ...] = ()


Build = Callable[[], Subject]


def tensors(output: Any) -> Iterator[Tensor]:
    """Give the tensors in an output that a gradient can come from, in order, each once."""
    seen: set[int] = set()
    waiting = [output]
    while waiting:
        given = waiting.pop(0)
        if isinstance(given, Tensor):
            if given.requires_grad and id(given) not in seen:
                seen.add(id(given))
                yield given
        elif isinstance(given, Mapping):
            waiting.extend(given.values())
        elif isinstance(given, Sequence) and not isinstance(given, str):
            waiting.extend(given)
        elif hasattr(given, "__dict__"):
            waiting.extend(vars(given).values())


def total(output: Any) -> Tensor:
    """Add up the mean squares of everything that a model gives: a loss for models without one of their own."""
    parts = [t.abs().square().sum() / max(1, t.numel()) for t in tensors(output)]
    return torch.stack(parts).sum()


def given(model: nn.Module, *inputs: Any, **options: Any) -> Subject:
    """Take as loss what the model calls its loss, or the mean squares of its outputs; the batch is its tensors."""

    def loss() -> Tensor:
        output = model(*inputs, **options)
        own = getattr(output, "loss", None)
        return own if isinstance(own, Tensor) and own.requires_grad else total(output)

    batch = [t for t in (*inputs, *options.values()) if isinstance(t, Tensor) and t.dim() and t.shape[0] == BATCH]
    return Subject(model, loss, tuple(batch))


def classes(model: nn.Module, x: Tensor, count: int = 5) -> Subject:
    """Take the cross entropy with random classes as loss; of several outputs, the first."""
    y = torch.randint(count, (len(x),))

    def loss() -> Tensor:
        output = model(x)
        scores = output if isinstance(output, Tensor) else next(tensors(output))
        return nn.functional.cross_entropy(scores.flatten(1) if scores.dim() > 2 else scores, y)

    return Subject(model, loss, (x,))


def images(size: int, channels: int = 3, batch: int = BATCH) -> Tensor:
    """Give random images: batch × channels × size × size."""
    return torch.randn(batch, channels, size, size)


def words(length: int = 8, vocabulary: int = 60, batch: int = BATCH) -> Tensor:
    """Give random words, none of which is one of the first few: batch × length."""
    return torch.randint(5, vocabulary, (batch, length))
