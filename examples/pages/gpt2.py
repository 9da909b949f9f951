"""A 12-layer GPT-2, untrained.

What an expert expects: its weights begin small (0.02), and every block adds to what it was given. So the
paths from the word embedding go around attention and the feed-forward block in all 12 layers; nothing is dead but the
rows of words and positions that the batch does not use.

    gradtrace trace examples/pages/gpt2.py:build
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def build() -> tuple[nn.Module, list[Tensor], Any]:
    """Give the model, a batch of words by number, and the loss of the next word."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size: dict[str, Any] = {"n_layer": 12, "n_head": 4, "n_embd": 64, "n_positions": 32, "vocab_size": 200}
    size["attn_implementation"] = "eager"
    model = GPT2LMHeadModel(GPT2Config(**size)).eval()
    return model, [torch.randint(200, (4, 16))], lambda model, ids: model(input_ids=ids, labels=ids).loss
