"""What is learned: batches to train on, held-out sets of trained and of greater lengths, a loss, a score, and "solved".

A task asks for a class at some of the steps of a sequence; a model gives scores, batch × time × classes. The score of
a model is the share of what is asked that it gets right, and a task is *solved* at the first evaluation at which that
share, held out and at the lengths trained on, is `solved` or more. A model that is never seen to do so is censored:
it has no number of samples.

Sequences are drawn afresh for every step, so short ones are seen more than once, and held-out ones may be seen too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .competition import Competition
from .seeds import derived_seed

IGNORED = -100  # the class of a step at which nothing is asked
HELD_OUT = 256  # sequences in a held-out set


@dataclass(frozen=True)
class Batch:
    """Sequences, and what is asked at every step.

    Attributes:
        inputs: batch × time, token numbers; or batch × time × features.
        targets: batch × time, classes, `IGNORED` where nothing is asked. Shorter sequences are filled up at the end.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats for each class asked, and the share of them that are right."""

    loss: float
    score: float


@dataclass(frozen=True)
class Task(ABC):
    """A row of `TASKS`.

    Attributes:
        about: what is asked, in a line.
        inputs: how many tokens there are, or how many features a step has.
        outputs: how many classes.
        lengths: shortest and longest that is trained on.
        beyond: shortest and longest to generalise to; None where there are none.
        solved: the score from which on it is solved.
        tokens: whether inputs are token numbers.
    """

    about: str
    inputs: int
    outputs: int
    lengths: tuple[int, int]
    beyond: tuple[int, int] | None
    solved: float
    tokens: bool = True

    @abstractmethod
    def training(self, seed: int, step: int, count: int) -> Batch:
        """Give the `count` sequences of one step; equal arguments give equal ones."""

    @abstractmethod
    def held_out(self, *, beyond: bool = False) -> Batch:
        """Give the held-out set, the same whatever the seed; `beyond`: of greater lengths than those trained on."""

    def embedding(self, hidden: int) -> nn.Module:
        """Make the layer that brings inputs to batch × time × hidden."""
        return nn.Embedding(self.inputs, hidden) if self.tokens else nn.Linear(self.inputs, hidden)

    def model(self, components: Sequence[str], hidden: int, seed: int, parameters: int | None = None) -> Competition:
        """Make the model in which components compete on this task."""
        given = {"outputs": self.outputs, "embedding": self.embedding, "parameters": parameters}
        return Competition(components, self.inputs, hidden, seed, **given)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Give the mean cross-entropy of what is asked, in nats."""
        return F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten())

    def right(self, scores: Tensor, batch: Batch) -> tuple[int, int]:
        """Count what is answered right, and what is asked."""
        asked = batch.targets != IGNORED
        return int((scores.argmax(-1) == batch.targets)[asked].sum()), int(asked.sum())

    @torch.no_grad()
    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Evaluation:
        """Evaluate a model, which is in the mode (training or evaluation) that is meant."""
        scores = model(batch.inputs)
        right, asked = self.right(scores, batch)
        return Evaluation(float(self.loss(scores, batch)), right / asked)


Draw = Callable[[torch.Generator, int, int], Batch]


@dataclass(frozen=True, kw_only=True)
class Generated(Task):
    """Sequences that a generator draws.

    Attributes:
        draw: from a source of random numbers, how many, and their length, to sequences of that length. What the
            length counts is the task's own; a sequence has more steps where the answer comes after the question.
    """

    draw: Draw

    def training(self, seed: int, step: int, count: int) -> Batch:
        """Draw sequences of one length, which is drawn first."""
        source = torch.Generator().manual_seed(derived_seed(seed, f"step {step}"))
        return self.draw(source, count, int(torch.randint(self.lengths[0], self.lengths[1] + 1, (), generator=source)))

    def held_out(self, *, beyond: bool = False) -> Batch:
        """Draw as many sequences of each length; the last set is remembered."""
        lengths = self.beyond if beyond else self.lengths
        if lengths is None:
            raise ValueError("this task has no greater lengths")
        return _held_out(self.draw, lengths)


@lru_cache(maxsize=64)
def _held_out(draw: Draw, lengths: tuple[int, int]) -> Batch:
    source = torch.Generator().manual_seed(derived_seed(0, f"held out {lengths}"))
    counts = [len(range(i, HELD_OUT, lengths[1] - lengths[0] + 1)) for i in range(lengths[1] - lengths[0] + 1)]
    return _stacked([draw(source, count, lengths[0] + i) for i, count in enumerate(counts)])


def _stacked(batches: list[Batch]) -> Batch:
    """Put batches of several lengths into one, filled up at the end, in mixed order."""
    time = max(b.inputs.shape[1] for b in batches)
    inputs = torch.cat([F.pad(b.inputs, (0, time - b.inputs.shape[1])) for b in batches])
    targets = torch.cat([F.pad(b.targets, (0, time - b.targets.shape[1]), value=IGNORED) for b in batches])
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))  # a few rows have several lengths
    return Batch(inputs[order], targets[order])


def _answered(question: Tensor, answer: Tensor) -> Batch:
    """Let the answer be given after the question, while 0 is read: batch × (question + answer)."""
    inputs = torch.cat((question, torch.zeros_like(answer)), 1)
    return Batch(inputs, torch.cat((torch.full_like(question, IGNORED), answer), 1))


def copy(source: torch.Generator, count: int, length: int) -> Batch:
    """Repeat: a b a c # . . . . → a b a c while reading the dots. Tokens: 0 the dot, 1 the mark, 2… four symbols."""
    word = torch.randint(4, (count, length), generator=source)
    return _answered(torch.cat((word + 2, torch.ones(count, 1, dtype=torch.long)), 1), word)


def parity(source: torch.Generator, count: int, length: int) -> Batch:
    """Say at every step whether the ones so far are odd in number. Tokens: 0 filling, 1 zero, 2 one."""
    bits = torch.randint(2, (count, length), generator=source)
    return Batch(bits + 1, bits.cumsum(1) % 2)


# To add a task, add a row.
TASKS: dict[str, Task] = {
    "copy": Generated("repeat a word of four symbols", 6, 4, (1, 6), (7, 12), 0.95, draw=copy),
    "parity": Generated("whether the ones so far are odd in number", 3, 2, (1, 12), (13, 24), 0.95, draw=parity),
}
