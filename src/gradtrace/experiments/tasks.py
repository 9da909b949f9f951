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

from ..errors import BadArgument
from . import sequences
from .competition import Competition
from .corpus import Corpus, default_text, make_corpus
from .seeds import derived_seed
from .sequences import BASE, IGNORED, KEYS, LETTERS, VALUES, Batch, stacked
from .training import held_out_windows, training_window

HELD_OUT = 256  # sequences in a held-out set
AT_ONCE = 32  # sequences in an evaluation: a text's have vocabulary × time scores each


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

    def written(self, batch: Batch) -> list[list[str]] | None:
        """Write down what is read, for people: batch × time; None where it is no tokens."""
        return [[str(token) for token in row] for row in batch.inputs.tolist()] if self.tokens else None

    def embedding(self, hidden: int) -> nn.Module:
        """Make the layer that brings inputs to batch × time × hidden."""
        return nn.Embedding(self.inputs, hidden) if self.tokens else nn.Linear(self.inputs, hidden)

    def model(self, components: Sequence[str], hidden: int, seed: int, parameters: int | None = None) -> Competition:
        """Make the model in which components compete on this task."""
        given = {"outputs": self.outputs, "embedding": self.embedding, "parameters": parameters}
        return Competition(components, self.inputs, hidden, seed, **given)

    def traced(self, count: int) -> Batch:
        """Choose sequences for tracing, evenly spread over the held-out set."""
        held_out = self.held_out()
        rows = torch.arange(count) * len(held_out) // count
        return Batch(held_out.inputs[rows], held_out.targets[rows])

    def read(self, scores: Tensor) -> Tensor:
        """Take what is asked from a model's scores."""
        return scores

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Give the mean cross-entropy of what is asked, in nats; scores are a model's, batch × time × classes."""
        return F.cross_entropy(self.read(scores).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Evaluation:
        """Evaluate a model, in the mode (training or evaluation) that it is in."""
        asked = loss = right = 0.0
        for at in range(0, len(batch), AT_ONCE):
            part = batch[at : at + AT_ONCE]
            scores, count = model(part.inputs), int((part.targets != IGNORED).sum())
            asked += count
            loss += float(self.loss(scores, part)) * count
            right += int((self.read(scores).argmax(-1) == part.targets).sum())  # no class is IGNORED
        return Evaluation(loss / asked, right / asked)


Draw = Callable[[torch.Generator, int, int], Batch]


@dataclass(frozen=True, kw_only=True)
class Generated(Task):
    """Sequences that a generator draws: every batch has as many of each length as of any other, or one more.

    Attributes:
        draw: from a source of random numbers, how many, and their length.
    """

    draw: Draw

    def training(self, seed: int, step: int, count: int) -> Batch:
        return _drawn(self.draw, self.lengths, count, derived_seed(seed, f"step {step}"))

    def held_out(self, *, beyond: bool = False) -> Batch:
        if not beyond:
            return _drawn_once(self.draw, self.lengths)
        if self.beyond is None:
            raise BadArgument("this task has no sequences beyond the lengths that it trains on")
        return _drawn_once(self.draw, self.beyond)


def _drawn(draw: Draw, lengths: tuple[int, int], count: int, seed: int) -> Batch:
    """Draw sequences of all lengths, mixed, so that a few of them have several."""
    source = torch.Generator().manual_seed(seed)
    order = torch.randperm(lengths[1] - lengths[0] + 1, generator=source).tolist()
    counts = [len(range(i, count, len(order))) for i in range(len(order))]
    batch = stacked([draw(source, n, lengths[0] + i) for n, i in zip(counts, order, strict=True) if n])
    mixed = torch.randperm(count, generator=source)
    return Batch(batch.inputs[mixed], batch.targets[mixed])


@lru_cache(maxsize=64)
def _drawn_once(draw: Draw, lengths: tuple[int, int]) -> Batch:
    return _drawn(draw, lengths, HELD_OUT, derived_seed(0, f"held out {lengths}"))


@dataclass(frozen=True, kw_only=True)
class NextWord(Task):
    """Windows of a text, each word of which is asked for after the words before it; `<unk>` is not asked for."""

    @property
    def corpus(self) -> Corpus:
        """The text that every CPython carries, in this vocabulary."""
        return _default_corpus(self.inputs)

    def written(self, batch: Batch) -> list[list[str]]:
        return [[self.corpus.vocabulary[word] for word in row] for row in batch.inputs.tolist()]

    def training(self, seed: int, step: int, count: int) -> Batch:
        words, length = self.corpus.training, self.lengths[1]
        source = torch.Generator().manual_seed(derived_seed(seed, f"step {step}"))
        starts = torch.randint(len(words) - length, (count, 1), generator=source)
        return _known(words[starts + torch.arange(length)], words[starts + torch.arange(1, length + 1)])

    def held_out(self, *, beyond: bool = False) -> Batch:
        lengths = self.beyond if beyond and self.beyond else self.lengths
        return _known(*held_out_windows(self.corpus.held_out, lengths[1]))


@dataclass(frozen=True, kw_only=True)
class Streams(Task):
    """A text of the user's, every word of which is asked for, read in as many streams as a step has windows.

    Windows follow each other (`training_window`); what a competition trains on.
    """

    corpus: Corpus

    def training(self, seed: int, step: int, count: int) -> Batch:
        return Batch(*training_window(self.corpus.training, step, count, self.lengths[1], seed))

    def held_out(self, *, beyond: bool = False) -> Batch:
        if beyond:
            raise BadArgument("a text has no greater lengths: it is cut into windows as one likes")
        return Batch(*held_out_windows(self.corpus.held_out, self.lengths[1]))

    def written(self, batch: Batch) -> list[list[str]]:
        return [[self.corpus.vocabulary[word] for word in row] for row in batch.inputs.tolist()]


@lru_cache(maxsize=2)
def _default_corpus(vocabulary: int) -> Corpus:
    return make_corpus(default_text(), vocabulary)


def _known(words: Tensor, following: Tensor) -> Batch:
    return Batch(words, following.where(following != 0, IGNORED))


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """Handwritten digits, read row by row; the scores of all rows are averaged before one is chosen.

    A row has eight pixels between 0 and 1, and eight numbers that say which row it is.
    """

    def training(self, seed: int, step: int, count: int) -> Batch:
        rows, digits = _digits()[0]
        source = torch.Generator().manual_seed(derived_seed(seed, f"step {step}"))
        chosen = torch.randint(len(digits), (count,), generator=source)
        return Batch(rows[chosen], digits[chosen])

    def held_out(self, *, beyond: bool = False) -> Batch:
        if beyond:
            raise BadArgument("digits have eight rows each: there are no greater lengths")
        return Batch(*_digits()[1])

    def read(self, scores: Tensor) -> Tensor:
        return scores.mean(1, keepdim=True)


@lru_cache(maxsize=1)
def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Give images as rows, and their digits, to train on and held out: a quarter, drawn once for all."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadArgument("the task digits needs scikit-learn: pip install 'gradtrace[examples]'") from None
    images, digits = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16
    rows = torch.cat((pixels, torch.eye(8).expand(len(pixels), 8, 8)), 2)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held_out, training = order[: len(rows) // 4], order[len(rows) // 4 :]
    asked = torch.tensor(digits)[:, None]
    return (rows[training], asked[training]), (rows[held_out], asked[held_out])


# To add a task, add a row.
TASKS: dict[str, Task] = {
    "text": NextWord("the next word of the language reference", 512, 512, (20, 20), (40, 40), 0.17),
    "copy": Generated("a word of four letters, again", 6, LETTERS, (1, 4), (5, 8), 0.95, draw=sequences.copy),
    "reversal": Generated(
        "a word of four letters, backwards", 6, LETTERS, (1, 4), (5, 8), 0.95, draw=sequences.reversal
    ),
    "recall": Generated(
        "the values of keys", 1 + KEYS * (1 + VALUES), VALUES, (1, 3), (4, 6), 0.95, draw=sequences.recall
    ),
    "parity": Generated("whether the ones are odd in number", 3, 2, (1, 12), (13, 24), 0.95, draw=sequences.parity),
    "dyck": Generated("which bracket is to be closed", 5, 3, (2, 16), (17, 32), 0.99, draw=sequences.dyck),
    "counting": Generated("aⁿbⁿcⁿ, as far as n is known", 4, 3, (1, 8), (9, 16), 0.99, draw=sequences.counting),
    "addition": Generated(
        "the sum of two numbers, lowest digit first", 1 + BASE**2, BASE, (1, 8), (9, 16), 0.95, draw=sequences.addition
    ),
    "digits": Digits("a handwritten digit, row by row", 16, 10, (8, 8), None, 0.85, tokens=False),
}
