"""Architectures in plain `torch.nn`: one of each idea that the libraries do not bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain import (
    DeepSets,
    ExpertMixture,
    FourierOperator,
    Gumbel,
    HyperNetwork,
    NeuralODE,
    PackedLSTM,
    RealNVP,
    ResidualBlock,
    Siren,
    SpatialTransformer,
    StateSpace,
    Translator,
    UNet,
    Unpooling,
    VariationalAutoencoder,
    VectorQuantised,
    WaveNet,
)
from rows import BATCH, Build, Subject, classes, given, images, words
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def picture(model: Callable[[], nn.Module], size: int = 16) -> Build:
    """Classify images."""
    return lambda: classes(model(), images(size))


def answer(model: Callable[[], nn.Module], *shape: int) -> Build:
    """Add up the mean squares of what comes out of random numbers: batch × shape."""
    return lambda: given(model(), torch.randn(BATCH, *shape))


def read(model: Callable[[], nn.Module], length: int = 8) -> Build:
    """Add up the mean squares of what comes out of random words."""
    return lambda: given(model(), words(length))


def lenet(activation: Callable[[], nn.Module] = nn.ReLU, pool: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Two convolutions and two layers."""
    down = pool or (lambda: nn.MaxPool2d(2))
    first = [nn.Conv2d(3, 6, 5, padding=2), activation(), down()]
    second = [nn.Conv2d(6, 8, 5, padding=2), activation(), down()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.LazyLinear(16), activation(), nn.Linear(16, 5))


def normed(norm: Callable[[int], nn.Module], **options: Any) -> nn.Module:
    """Two convolutions, each with a normalisation."""
    first = [nn.Conv2d(3, 8, 3, padding=1, **options), norm(8), nn.ReLU()]
    second = [nn.Conv2d(8, 8, 3, stride=2, padding=1, **options), norm(8), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def deep(width: int, depth: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """Layers and activations, with dropout."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation(), nn.Dropout(0.1))]
    return nn.Sequential(*layers)


def initialised(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Let lazy layers see their widths."""
    with torch.no_grad():
        model(*inputs)
    return model


def embedded(inner: nn.Module, width: int = 8) -> nn.Module:
    """Put an embedding of 60 words in front."""
    return nn.Sequential(nn.Embedding(60, width), inner)


def transformer() -> Subject:
    """The original one: an encoder and a decoder that sees the past only."""
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    x, y = torch.randn(BATCH, 6, 8), torch.randn(BATCH, 5, 8)
    return given(model, x, y, tgt_mask=model.generate_square_subsequent_mask(5))


def decoder() -> Subject:
    """A decoder alone."""
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    return given(nn.TransformerDecoder(layer, 2), torch.randn(BATCH, 5, 8), torch.randn(BATCH, 6, 8))


def masked_encoder() -> Subject:
    """An encoder whose last words are padding."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    padding = torch.zeros(BATCH, 6, dtype=torch.bool)
    padding[0, 4:] = True
    return given(nn.TransformerEncoder(layer, 2), torch.randn(BATCH, 6, 8), src_key_padding_mask=padding)


def encoder(**options: Any) -> nn.Module:
    """Two encoder layers."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options), 2)


def attention() -> Subject:
    """Attention of one sequence to another, of other widths."""
    model, x, y = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True), torch.randn(BATCH, 5, 8), BATCH
    return given(model, x, torch.randn(y, 7, 6), torch.randn(y, 7, 4))


def bag() -> Subject:
    """Bags of words: fastText."""
    model = nn.Sequential(nn.EmbeddingBag(60, 8, mode="mean"), nn.Linear(8, 5))
    return classes(model, words())


def bilinear() -> Subject:
    """A bilinear form of two inputs."""
    return given(nn.Bilinear(4, 5, 6), torch.randn(BATCH, 4), torch.randn(BATCH, 5))


def triplet() -> Subject:
    """A Siamese network under the triplet loss."""
    model, three = deep(8, 2, nn.Tanh), [torch.randn(BATCH, 8) for _ in range(3)]
    return Subject(model, lambda: nn.functional.triplet_margin_loss(*(model(x) for x in three)), tuple(three))


def contrastive() -> Subject:
    """SimCLR: every example is compared with every other."""
    model, x, y = deep(8, 2, nn.ReLU), torch.randn(4, 8), torch.randn(4, 8)

    def loss() -> Tensor:
        first, second = (nn.functional.normalize(model(z), dim=1) for z in (x, y))
        return nn.functional.cross_entropy(first @ second.T / 0.1, torch.arange(4))

    return Subject(model, loss, (x, y))


def ctc() -> Subject:
    """Speech: a recurrent network under connectionist temporal classification."""
    model, x, y = nn.LSTM(6, 10, batch_first=True, bidirectional=True), torch.randn(BATCH, 12, 6), words(3, 20)
    lengths = torch.full((BATCH,), 12), torch.full((BATCH,), 3)

    def loss() -> Tensor:
        scores = model(x)[0].log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(scores, y, *lengths)

    return Subject(model, loss, (x,))


def adaptive() -> Subject:
    """A softmax whose rare words have narrower layers."""
    model, x, y = nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30]), torch.randn(8, 16), torch.randint(60, (8,))
    return Subject(model, lambda: model(x, y).loss, (x,))


def actor_critic() -> Subject:
    """A policy and a value on one trunk, under the policy gradient."""
    trunk, policy, value = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)
    model, x = nn.ModuleList([trunk, policy, value]), torch.randn(BATCH, 6)
    rewards = torch.randn(BATCH)

    def loss() -> Tensor:
        hidden = torch.tanh(trunk(x))
        chosen = torch.distributions.Categorical(logits=policy(hidden))
        advantage = rewards - value(hidden).squeeze(1)
        gain = chosen.log_prob(chosen.sample()) * advantage.detach() + 0.01 * chosen.entropy()
        return (advantage.square() - gain).mean()

    return Subject(model, loss, (x, rewards))


def quantised() -> Subject:
    """Weights and activations rounded to 8 bits in training, straight through in the backward pass."""
    from torch.ao.quantization import FakeQuantize

    model = nn.Sequential(nn.Linear(8, 8), FakeQuantize(), nn.ReLU(), nn.Linear(8, 5), FakeQuantize())
    return classes(model, torch.randn(BATCH, 8))


def decoded(*shape: int) -> nn.Module:
    """Make images from codes: a generator as in DCGAN."""
    first = [nn.ConvTranspose2d(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(nn.Unflatten(1, shape), *first, nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())


def upsampled(mode: str) -> nn.Module:
    """Super-resolution by interpolation and by pixel shuffling."""
    first = [nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.Upsample(scale_factor=1.5, mode=mode)]
    return nn.Sequential(*first, nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))


def channels_last() -> Subject:
    """Convolutions whose images and kernels lie in memory pixel by pixel."""
    model = normed(nn.BatchNorm2d)
    for kernel in model.parameters():
        if kernel.dim() == 4:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return classes(model, images(16).contiguous(memory_format=torch.channels_last))


def weighted(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Two layers whose weights are parametrized."""
    return nn.Sequential(kind(nn.Linear(8, 8)), nn.Tanh(), kind(nn.Linear(8, 8)))


ROWS: dict[str, Build] = {
    "MLP, tanh": answer(lambda: deep(16, 4, nn.Tanh), 16),
    "MLP, ReLU": answer(lambda: deep(16, 4, nn.ReLU), 16),
    "MLP, GELU": answer(lambda: deep(16, 4, nn.GELU), 16),
    "MLP, SELU and alpha dropout": answer(lambda: nn.Sequential(deep(8, 2, nn.SELU), nn.AlphaDropout(0.2)), 8),
    "MLP, PReLU": answer(lambda: deep(16, 2, nn.PReLU), 16),
    "MLP, randomised ReLU": answer(lambda: deep(16, 2, nn.RReLU), 16),
    "MLP, gated linear units": answer(lambda: nn.Sequential(nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 4)), 8),
    "LeNet": picture(lambda: initialised(lenet(), images(16))),
    "LeNet, average pooling": picture(lambda: initialised(lenet(nn.Tanh, lambda: nn.AvgPool2d(2)), images(16))),
    "LeNet, power pooling": picture(lambda: initialised(lenet(nn.Sigmoid, lambda: nn.LPPool2d(2, 2)), images(16))),
    "LeNet, fractional pooling": picture(
        lambda: initialised(lenet(nn.ReLU, lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5)), images(16))
    ),
    "convolutions, batch norm": picture(lambda: normed(nn.BatchNorm2d)),
    "convolutions, instance norm": picture(lambda: normed(lambda n: nn.InstanceNorm2d(n, affine=True))),
    "convolutions, group norm": picture(lambda: normed(lambda n: nn.GroupNorm(2, n))),
    "convolutions, local response norm": picture(lambda: normed(nn.LocalResponseNorm)),
    "convolutions, circular": picture(lambda: normed(nn.BatchNorm2d, padding_mode="circular")),
    "convolutions, channels last": channels_last,
    "residual network": picture(lambda: nn.Sequential(ResidualBlock(3), ResidualBlock(3), nn.Flatten())),
    "U-Net": answer(UNet, 3, 16, 16),
    "temporal convolutions": answer(lambda: nn.Sequential(nn.Conv1d(4, 8, 3, dilation=2), nn.Conv1d(8, 4, 3)), 4, 20),
    "WaveNet": answer(WaveNet, 4, 20),
    "convolutions in space": answer(lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.MaxPool3d(2)), 2, 8, 8, 8),
    "DCGAN generator": answer(lambda: decoded(8, 1, 1), 8),
    "super-resolution, nearest": answer(lambda: upsampled("nearest"), 3, 8, 8),
    "super-resolution, bilinear": answer(lambda: upsampled("bilinear"), 3, 8, 8),
    "super-resolution, bicubic": answer(lambda: upsampled("bicubic"), 3, 8, 8),
    "SegNet's unpooling": answer(Unpooling, 3, 8, 8),
    "spatial transformer": answer(SpatialTransformer, 3, 8, 8),
    "unfold and fold": answer(
        lambda: nn.Sequential(nn.Unfold(3, stride=2), nn.Conv1d(27, 27, 1), nn.Fold((7, 7), 3, stride=2)), 3, 7, 7
    ),
    "spectral norm": answer(lambda: weighted(parametrizations.spectral_norm), 8),
    "weight norm": answer(lambda: weighted(parametrizations.weight_norm), 8),
    "orthogonal weights": answer(lambda: weighted(parametrizations.orthogonal), 8),
    "RNN": read(lambda: embedded(nn.RNN(8, 8, 2, batch_first=True, dropout=0.1))),
    "LSTM": read(lambda: embedded(nn.LSTM(8, 8, 2, batch_first=True, dropout=0.1))),
    "LSTM, projected": read(lambda: embedded(nn.LSTM(8, 8, proj_size=4, batch_first=True))),
    "LSTM, both ways": read(lambda: embedded(nn.LSTM(8, 8, bidirectional=True, batch_first=True))),
    "LSTM, packed": answer(PackedLSTM, 6, 4),
    "GRU": read(lambda: embedded(nn.GRU(8, 8, 2, batch_first=True))),
    "LSTM with attention": lambda: given(Translator(), words(), words(6)),
    "attention across": attention,
    "Transformer": transformer,
    "Transformer encoder": answer(encoder, 6, 8),
    "Transformer encoder, norm first": answer(lambda: encoder(norm_first=True, activation="gelu"), 6, 8),
    "Transformer encoder, padded": masked_encoder,
    "Transformer decoder": decoder,
    "fastText": bag,
    "bilinear": bilinear,
    "Siamese network": triplet,
    "contrastive": contrastive,
    "speech, CTC": ctc,
    "adaptive softmax": adaptive,
    "actor and critic": actor_critic,
    "quantisation-aware": quantised,
    "autoencoder, variational": answer(VariationalAutoencoder, 12),
    "autoencoder, vector-quantised": answer(VectorQuantised, 12),
    "Gumbel softmax": answer(Gumbel, 12),
    "mixture of experts": answer(ExpertMixture, 6, 8),
    "normalising flow": answer(RealNVP, 6),
    "neural ODE": answer(NeuralODE, 4),
    "Fourier neural operator": answer(FourierOperator, 4, 16),
    "state space, diagonal complex": answer(StateSpace, 10, 4),
    "deep sets": answer(DeepSets, 7, 4),
    "SIREN": answer(Siren, 2),
    "hypernetwork": answer(HyperNetwork, 6),
}
