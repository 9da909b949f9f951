"""Sequences that are drawn at random, with what is asked about them: the batches of the synthetic tasks.

Each function takes a source of random numbers, how many sequences to draw, and their length, which counts what its
docstring says. Token 0 is read where there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

IGNORED = -100  # the class of a step at which nothing is asked
LETTERS, KEYS, VALUES, BASE = 4, 6, 4, 4


@dataclass(frozen=True)
class Batch:
    """Sequences, and what is asked at every step.

    Attributes:
        inputs: batch × time, token numbers; or batch × time × features.
        targets: batch × time, classes, `IGNORED` where nothing is asked.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.inputs[rows], self.targets[rows])


def stacked(batches: Sequence[Batch]) -> Batch:
    """Put batches of several lengths under each other, the shorter ones filled up at the end."""
    time = max(b.inputs.shape[1] for b in batches)
    inputs = torch.cat([F.pad(b.inputs, (0, time - b.inputs.shape[1])) for b in batches])
    return Batch(inputs, torch.cat([F.pad(b.targets, (0, time - b.targets.shape[1]), value=IGNORED) for b in batches]))


def _answered(question: Tensor, answer: Tensor) -> Batch:
    """Ask for the answer after the question and a mark, 1, while 0 is read: batch × (question + 1 + answer)."""
    mark = torch.ones(len(question), 1, dtype=torch.long)
    inputs = torch.cat((question, mark, torch.zeros_like(answer)), 1)
    before = torch.full((len(question), question.shape[1] + 1), IGNORED)
    return Batch(inputs, torch.cat((before, answer), 1))


def copy(source: Generator, count: int, length: int) -> Batch:
    """Ask for a word of so many letters, after it: read a b a c | . . . ., say a b a c. Tokens: 1 |, 2… letters."""
    word = torch.randint(LETTERS, (count, length), generator=source)
    return _answered(word + 2, word)


def reversal(source: Generator, count: int, length: int) -> Batch:
    """Ask for a word of so many letters backwards: read a b a c | . . . ., say c a b a. Tokens: 1 |, 2… letters."""
    word = torch.randint(LETTERS, (count, length), generator=source)
    return _answered(word + 2, word.flip(1))


def recall(source: Generator, count: int, length: int) -> Batch:
    """Show so many keys, each with a value, then ask for the value of each key, in another order.

    Tokens: 1… the keys alone, then each pair: 1 + KEYS + key · VALUES + value.
    """
    keys = torch.rand(count, KEYS, generator=source).argsort(1)[:, :length]
    values = torch.randint(VALUES, (count, length), generator=source)
    order = torch.rand(count, length, generator=source).argsort(1)
    inputs = torch.cat((1 + KEYS + keys * VALUES + values, 1 + keys.gather(1, order)), 1)
    return Batch(inputs, torch.cat((torch.full_like(values, IGNORED), values.gather(1, order)), 1))


def parity(source: Generator, count: int, length: int) -> Batch:
    """Ask at each of so many bits whether the ones so far are odd in number. Tokens: 1 zero, 2 one."""
    bits = torch.randint(2, (count, length), generator=source)
    return Batch(bits + 1, bits.cumsum(1) % 2)


def dyck(source: Generator, count: int, length: int) -> Batch:
    """Ask at each of so many brackets which is the innermost that is open: 0 none, 1 round, 2 square.

    A bracket opens where none is open, and otherwise with probability 1/2. Tokens: ( [ ) ] are 1 to 4.
    """
    opens = torch.rand(count, length, generator=source) < 0.5
    kinds = torch.randint(1, 3, (count, length), generator=source)
    stack = torch.zeros(count, length + 1, dtype=torch.long)  # the bracket at each depth, from depth 1 on
    depth, rows, read, asked = torch.zeros(count, dtype=torch.long), torch.arange(count), [], []
    for may_open, kind in zip(opens.unbind(1), kinds.unbind(1), strict=True):
        opened = may_open | (depth == 0)
        read.append(torch.where(opened, kind, stack[rows, depth] + 2))
        depth = depth + torch.where(opened, 1, -1)
        stack[rows, depth] = torch.where(opened, kind, stack[rows, depth])
        asked.append(stack[rows, depth])
    return Batch(torch.stack(read, 1), torch.stack(asked, 1))


def counting(source: Generator, count: int, length: int) -> Batch:
    """Ask what comes next in aⁿbⁿcⁿ, n the length, wherever what was read decides it: 0 b, 1 c, 2 the end.

    Nothing is random: there is one word of each length. Tokens: a b c are 1 to 3.
    """
    del source
    letters = torch.arange(1, 4).repeat_interleave(length)
    comes = torch.cat((torch.full((length,), IGNORED), letters[length + 1 :] - 2, torch.tensor([2])))
    return Batch(letters.expand(count, -1), comes.expand(count, -1))


def addition(source: Generator, count: int, length: int) -> Batch:
    """Add two numbers of so many digits, of base BASE, the lowest first: ask for each digit of the sum.

    Tokens: 1 + a pair of digits, as a number.
    """
    a, b = torch.randint(BASE, (2, count, length), generator=source)
    place = BASE ** torch.arange(length)
    total = ((a + b) * place).cumsum(1)  # below BASE^(length + 1)
    return Batch(1 + a * BASE + b, total // place % BASE)
