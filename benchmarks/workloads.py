"""The models that benchmarks run: each with one batch, whose first dimension enumerates the examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.options import Options

LossOf: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model, a batch, and the loss of a model on a batch.

    Attributes:
        x, y: batch × …; what the model takes, and what it should give.
        cells: whether it is a recurrent cell, one small operator call after the other.
    """

    model: nn.Module
    of: LossOf
    x: Tensor
    y: Tensor
    cells: bool = False

    def loss(self) -> Tensor:
        """Compute ℓ."""
        return self.of(self.model, self.x, self.y)

    def to(self, device: str) -> Subject:
        """Move model and batch."""
        return replace(self, model=self.model.to(device), x=self.x.to(device), y=self.y.to(device))


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compare one score a class with the class."""
    return F.cross_entropy(model(x), y)


def next_words(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compare scores, batch × time × vocabulary, with words."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def squared(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """Give the mean square of the result."""
    return model(x).square().mean()


class LanguageModel(nn.Module):
    """Embedding, a recurrent layer, output layer."""

    def __init__(self, vocabulary: int, width: int, layers: int, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = kind(width, width, layers)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        """Score the next word at every position: batch × time → batch × time × vocabulary."""
        return self.output(self.recurrent(self.embedding(words.T))[0]).transpose(0, 1)


def language(
    kind: Callable[..., nn.RNNBase], vocabulary: int, width: int, layers: int, batch: int, steps: int, *, cells: bool
) -> Subject:
    """Make a language model, and random words."""
    words = torch.randint(vocabulary, (batch, steps))
    return Subject(LanguageModel(vocabulary, width, layers, kind), next_words, words, words, cells)


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch norm, and a skip connection."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if channels == out and stride == 1 else project

    def forward(self, x: Tensor) -> Tensor:
        """Add what two convolutions make of x to x."""
        inner = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(inner + self.skip(x))


def images(blocks: list[nn.Module], stem: int, out: int, batch: int, size: int) -> Subject:
    """Put a stem and a head around blocks, and make random images of three channels."""
    first = [nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    model = nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 10))
    return Subject(model, classified, torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))


# ---------------------------------------------------------------- about 8 ms of backward each, on two threads


def transformer() -> Subject:
    """Transformer encoder: 3 layers of width 128, 4 heads, batch 8 × 32 positions."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(32 * 128, 10))
    return Subject(model, classified, torch.randn(8, 32, 128), torch.randint(10, (8,)))


def gru() -> Subject:
    """GRU language model: 128 units, vocabulary 2,000, batch 8 × 32."""
    return language(nn.GRU, 2000, 128, 1, 8, 32, cells=True)


def residual() -> Subject:
    """Four residual blocks of 24 channels, batch norm in training, batch 8 × 16 × 16."""
    return images([Block(24, 24, 1) for _ in range(4)], 24, 24, 8, 16)


# ---------------------------------------------------------------- larger ones, and one that is all overhead


def gpt2() -> Subject:
    """GPT-2 shape: 4 layers, d 768, 12 heads, vocabulary 50,257, batch 4 × 128 tokens; random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=4, n_positions=128, use_cache=False)
    ids = torch.randint(config.vocab_size, (4, 128))
    return Subject(GPT2LMHeadModel(config), lambda model, x, y: model(input_ids=x, labels=y).loss, ids, ids)


def lstm() -> Subject:
    """LSTM language model: 2 × 650, vocabulary 10,000, batch 20 × 35."""
    return language(nn.LSTM, 10_000, 650, 2, 20, 35, cells=False)


def rnn() -> Subject:
    """RNN language model, the source's example: 1,000 units, vocabulary 10,000, batch 20 × 35."""
    return language(nn.RNN, 10_000, 1000, 1, 20, 35, cells=True)


def competition() -> Subject:
    """The default `gradtrace compete` model and batch."""
    given = Options()
    model = Competition(given.components, given.vocabulary, given.hidden, given.seed)
    words = torch.randint(given.vocabulary, (given.batch, given.bptt))
    return Subject(model, next_word_loss, words, words, cells=True)


def resnet() -> Subject:
    """ResNet shape: 64-128-256 channels, batch 16 × 32 × 32."""
    return images([Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2)], 64, 256, 16, 32)


class Dense(nn.Module):
    """A layer that sees all that came before, and adds some channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give x, and beside it new channels."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> Subject:
    """Dense net: 8 layers of 12 new channels, batch norm in training, batch 8 × 16 × 16."""
    return images([Dense(24 + 12 * n, 12) for n in range(8)], 24, 24 + 12 * 8, 8, 16)


class Mix(nn.Module):
    """A mixer's layer: over the places, then over the channels, each with a skip connection."""

    def __init__(self, places: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.places = nn.Sequential(nn.Linear(places, places), nn.GELU(), nn.Linear(places, places))
        self.channels = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Mix batch × places × channels."""
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def mixer() -> Subject:
    """Mixer: 3 layers, 49 places of 64 channels, batch 8."""
    model = nn.Sequential(*(Mix(49, 64) for _ in range(3)), nn.Flatten(), nn.Linear(49 * 64, 10))
    return Subject(model, classified, torch.randn(8, 49, 64), torch.randint(10, (8,)))


def layers(width: int, depth: int, activation: type[nn.Module], batch: int) -> Subject:
    """Stack linear layers and activations."""
    model = nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(width, width), activation())))
    x = torch.randn(batch, width)
    return Subject(model, squared, x, x)


def mlp() -> Subject:
    """MLP 4 × 2048, batch 512, ReLU."""
    return layers(2048, 4, nn.ReLU, 512)


def tiny() -> Subject:
    """MLP 20 × 20 units, batch 1, tanh: all overhead."""
    return layers(20, 20, nn.Tanh, 1)


SMALL: dict[str, Callable[[], Subject]] = {"transformer": transformer, "GRU": gru, "residual": residual}
# ---------------------------------------------------------------- of other kinds, to which nothing is fitted


class UNet(nn.Module):
    """Two levels down and up again, with skip connections, group norms and SiLUs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width)
        self.down = nn.ModuleList(self._two(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, n, 2, 2) for n in (2 * width, width))
        self.after = nn.ModuleList([self._two(4 * width, 2 * width), self._two(2 * width, width)])
        self.out = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _two(channels: int, out: int) -> nn.Module:
        layers = (nn.Conv2d(channels, out, 3, 1, 1), nn.GroupNorm(4, out), nn.SiLU(), nn.Conv2d(out, out, 3, 1, 1))
        return nn.Sequential(*layers, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Give an image of the same size."""
        kept = [h := self.down[0](x)]
        for block in self.down[1:]:
            h = block(F.max_pool2d(h, 2))
            kept.append(h)
        for up, after, skip in zip(self.up, self.after, kept[-2::-1], strict=True):
            h = after(torch.cat([up(h), skip], 1))
        return self.out(h)


class Experts(nn.Module):
    """Tokens go to the two of several experts that a gate chooses, and around them."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        make = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )
        self.experts = nn.ModuleList(make)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Give one score a class: batch × time × width → batch × 10."""
        weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
        total = x
        for number, expert in enumerate(self.experts):
            batch, time, rank = (chosen == number).nonzero(as_tuple=True)
            total = total.index_put((batch, time), expert(x[batch, time]) * weight[batch, time, rank, None], True)
        return self.out(total.mean(1))


class Cells(nn.Module):
    """An LSTM cell in a loop, as a program writes it."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(vocabulary, width), nn.LSTMCell(width, width)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        """Score the next word at every position."""
        h = c = torch.zeros(len(words), self.cell.hidden_size)
        states = []
        for x in self.embedding(words.T):
            h, c = self.cell(x, (h, c))
            states.append(h)
        return self.output(torch.stack(states, 1))


def small_resnet() -> Subject:
    """Six residual blocks of 16 to 64 channels, batch norm in training, batch 12 × 24 × 24."""
    shapes = (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)
    return images([Block(*shape) for shape in shapes], 16, 64, 12, 24)


def small_encoder() -> Subject:
    """Two pre-norm encoder layers of width 192, 6 heads, batch 4 × 48, all positions scored."""
    layer = nn.TransformerEncoderLayer(192, 6, 384, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(500, 192), encoder, nn.Linear(192, 500))
    words = torch.randint(500, (4, 48))
    return Subject(model, next_words, words, words)


def cells() -> Subject:
    """LSTMCell of 160 units in a loop of 40 steps, vocabulary 800, batch 6."""
    words = torch.randint(800, (6, 40))
    return Subject(Cells(800, 160), next_words, words, words, cells=True)


def small_mixer() -> Subject:
    """Three mixer layers: 36 tokens of width 96, batch 10."""
    make = lambda a, b: nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, a))  # noqa: E731
    return Subject(Mixing(36, 96, 3, make), classified, torch.randn(10, 36, 96), torch.randint(10, (10,)))


class Mixing(nn.Module):
    """Perceptrons along the tokens, and along the channels, in turn."""

    def __init__(self, tokens: int, width: int, layers: int, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.along = nn.ModuleList(make(tokens, 2 * tokens) for _ in range(layers))
        self.across = nn.ModuleList(make(width, 2 * width) for _ in range(layers))
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Give one score a class: batch × tokens × width → batch × 10."""
        for number, (along, across) in enumerate(zip(self.along, self.across, strict=True)):
            x = x + along(self.norms[2 * number](x).transpose(1, 2)).transpose(1, 2)
            x = x + across(self.norms[2 * number + 1](x))
        return self.out(x.mean(1))


def experts() -> Subject:
    """Mixture of six experts of width 128, two for each of 8 × 24 tokens."""
    return Subject(Experts(128, 6), classified, torch.randn(8, 24, 128), torch.randint(10, (8,)))


def unet() -> Subject:
    """U-Net of two levels, 16 and 32 channels, batch 4 × 32 × 32."""
    return Subject(UNet(16), squared, torch.randn(4, 3, 32, 32), torch.zeros(4))


LARGE: dict[str, Callable[[], Subject]] = {
    "GPT-2": gpt2,
    "LSTM": lstm,
    "competition": competition,
    "ResNet": resnet,
    "MLP": mlp,
    "tiny MLP": tiny,
}
OTHERS: dict[str, Callable[[], Subject]] = {"RNN": rnn, "mixer": mixer, "dense net": densenet}
WORKLOADS = SMALL | LARGE | OTHERS
HELD_OUT: dict[str, Callable[[], Subject]] = {
    "small ResNet": small_resnet,
    "small encoder": small_encoder,
    "LSTMCell loop": cells,
    "small mixer": small_mixer,
    "experts": experts,
    "U-Net": unet,
}
