"""Windows of a text, and steps of training; everything is a function of the options and the step number.

The text is cut into as many contiguous streams as a batch has rows, and a step trains on one window of each.
Hidden state is not carried from one window to the next: attention has none to carry, so the components
compete over the same words, and a traced window is the same kind of thing as a trained one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .seeds import derived_seed

MAX_NORM = 1.0


def training_window(words: Tensor, step: int, batch: int, bptt: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give the words and next words of one step: two of batch × bptt.

    Windows follow each other through the streams. Each pass begins at another offset below `bptt`, drawn
    from the seed, so that no word is always the first of its window.
    """
    length = len(words) // batch
    streams = words[: length * batch].reshape(batch, length)
    a_pass = max(1, (length - bptt) // bptt)
    spare = min(bptt, length - a_pass * bptt)  # offsets that leave room for the last target
    done, at = divmod(step, a_pass)
    offset = derived_seed(seed, f"pass {done}") % spare
    start = offset + at * bptt
    return streams[:, start : start + bptt], streams[:, start + 1 : start + bptt + 1]


def held_out_windows(words: Tensor, bptt: int) -> tuple[Tensor, Tensor]:
    """Cut the held-out part into windows that do not overlap: two of windows × bptt."""
    count = (len(words) - 1) // bptt
    return words[: count * bptt].reshape(count, bptt), words[1 : count * bptt + 1].reshape(count, bptt)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one step down a loss's gradient, its norm clipped; give the loss before it."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    return float(loss.detach())


def perplexity(loss: float) -> float:
    """Give e^loss; infinity where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf
