"""The first experiment of Du et al. (2023), repeated: through which branch of attention do top gradient paths go?

The task: is the first token of a sequence repeated later on? 10,000 sequences of 10 tokens of 19, half of them true;
7,000 to train on, 1,000 to look at. A one-layer BERT of width 16, 2 heads, feed-forward 32, dropout 0.2 (none in
attention), Adam 0.001, batch 32, 42 epochs. The input of the attention layer goes on in four branches: keys, queries,
values, and around. For each token of a held-out sequence the strongest path, from any of the token's 16 units to the
correct class's logit, takes one of the four; that branch gets its weight and the others 0. Means over tokens and
sequences, per branch.

Their program keeps the largest positive path; a trace keeps the largest in absolute value. Both are here. So is the
same network with softmax and layer norm taken apart into exponentials, sums and quotients, as a program without an
operator for them would have it: other operators, other paths.

    python benchmarks/first_token.py [docs/study.md]       prints the table, or puts it between the page's marks
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import show
from torch import Tensor, nn

from gradtrace import record
from gradtrace.semirings import Max, SignedMax

MARKS = ("<!-- first-token:begin -->", "<!-- first-token:end -->")
BRANCHES = ("key", "query", "skip", "value")
THEIRS = (0.0301, 0.0174, 0.0094, 0.00095)
TOKENS, LENGTH, POINTS, TRAINED, LOOKED_AT = 20, 10, 10_000, 7_000, 1_000
SEEDS, EPOCHS, BATCH = 2, 42, 32


def sequences(seed: int) -> tuple[Tensor, Tensor]:
    """Draw sequences and whether their first token comes once more: points × length, points. Token 0 is not used."""
    source = torch.Generator().manual_seed(seed)
    first = torch.randint(1, TOKENS, (POINTS, 1), generator=source)
    rest = torch.randint(1, TOKENS - 1, (POINTS, LENGTH - 1), generator=source)
    rest = rest + (rest >= first)  # any token but the first
    true = torch.arange(POINTS) < POINTS // 2
    place = torch.randint(LENGTH - 1, (POINTS, 1), generator=source)
    rest = torch.where(true[:, None] & (torch.arange(LENGTH - 1) == place), first, rest)
    order = torch.randperm(POINTS, generator=source)
    return torch.cat((first, rest), 1)[order], true.long()[order]


def bert(seed: int) -> nn.Module:
    """Make the network."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=TOKENS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"  # matmul, softmax, matmul
    return BertForSequenceClassification(config)  # of two classes


def train(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int) -> None:
    """Train by Adam, in the order in which the sequences are."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for at in range(0, len(inputs), BATCH):
            loss = F.cross_entropy(model(input_ids=inputs[at : at + BATCH]).logits, labels[at : at + BATCH])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def branches(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Give each branch's mean top path, by absolute value and the most positive; sequences don't meet."""
    attention = model.get_submodule("bert.encoder.layer.0.attention")
    kept: dict[str, Tensor] = {}

    def own(name: str, at: int):
        """Give a branch a value of its own, equal to the layer's input."""

        def hook(module: nn.Module, given: tuple) -> tuple:
            kept[name] = given[at] * 1.0
            return (*given[:at], kept[name], *given[at + 1 :])

        return hook

    places = {"key": ("self.key", 0), "query": ("self.query", 0), "value": ("self.value", 0), "skip": ("output", 1)}
    hooks = [attention.get_submodule(m).register_forward_pre_hook(own(n, at)) for n, (m, at) in places.items()]
    model.eval()
    try:
        with record(model, examples=inputs) as tape:
            logits = model(input_ids=inputs).logits
            loss = logits.gather(1, labels[:, None]).sum()  # of the correct class
    finally:
        for hook in hooks:
            hook.remove()
    values = [kept[name] for name in BRANCHES]
    strongest, signed = tape.grad(loss, values, [Max, SignedMax])
    return {
        "absolute": _means(torch.stack(strongest)),
        "positive": _means(torch.stack([pair[0] for pair in signed])),
    }


@contextmanager
def apart() -> Iterator[None]:
    """Write softmax and layer norm out, inside the block."""

    def softmax(x: Tensor, dim: int = -1, **given: Any) -> Tensor:
        e = (x - x.amax(dim, keepdim=True).detach()).exp()
        return e / e.sum(dim, keepdim=True)

    def layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    with patch.object(F, "softmax", softmax), patch.object(F, "layer_norm", layer_norm):
        yield


def _means(weights: Tensor) -> dict[str, float]:
    """Give the branch of each token's top path its weight; weights: branches × sequences × tokens × units."""
    best, branch = weights.amax(-1).max(0)
    return {name: float(best.where(branch == i, 0).double().mean()) for i, name in enumerate(BRANCHES)}


def table(seeds: int = SEEDS, epochs: int = EPOCHS) -> str:
    """Train under several seeds, and write the branches' means."""
    lines = [
        "| | held-out accuracy | " + " | ".join(BRANCHES) + " | order |",
        "|---|---|" + "---|" * (len(BRANCHES) + 1),
        _row("Du et al.", "", dict(zip(BRANCHES, THEIRS, strict=True))),
    ]
    for seed in range(1, seeds + 1):
        inputs, labels = sequences(seed)
        model = bert(seed)
        train(model, inputs[:TRAINED], labels[:TRAINED], epochs)
        rows = slice(TRAINED, TRAINED + LOOKED_AT)
        found = branches(model, inputs[rows], labels[rows])
        with apart():
            found |= {f"{k}, apart": v for k, v in branches(model, inputs[rows], labels[rows]).items()}
        with torch.no_grad():
            right = float((model(input_ids=inputs[rows]).logits.argmax(1) == labels[rows]).double().mean())
        lines += [_row(f"seed {seed}, {kind}", f"{right:.1%}", means) for kind, means in found.items()]
    return "\n".join(lines)


def _row(name: str, accuracy: str, means: dict[str, float]) -> str:
    order = " > ".join(sorted(means, key=lambda n: -means[n]))
    return f"| {name} | {accuracy} | " + " | ".join(f"{means[n]:.2g}" for n in BRANCHES) + f" | {order} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or put it into a page."""
    show(__doc__, MARKS, table, arguments)


if __name__ == "__main__":
    main()
