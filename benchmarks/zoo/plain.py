"""Small models in plain PyTorch, one for each idea."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


class UNet(nn.Module):
    """One level down and up, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 3, 1)
        self.drop = nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.down(x))
        return self.out(torch.cat([skip, self.up(self.drop(F.silu(self.middle(F.max_pool2d(skip, 2)))))], 1))


class WaveNet(nn.Module):
    """Gated dilated convolutions; skips add up to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.mixes = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for i, (gate, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            out = mix(torch.tanh(a) * torch.sigmoid(b))
            total, x = total + out, x + out
        return total


class Unpooling(nn.Module):
    """Pooling whose indices say where unpooling puts things."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, where = F.max_pool2d(self.down(x), 2, return_indices=True)
        return self.up(F.max_unpool2d(pooled, where, [2, 2]))


class SpatialTransformer(nn.Module):
    """A network that says from where each pixel is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.out = nn.Linear(3 * 8 * 8, 6), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.out(F.grid_sample(x, grid, align_corners=False))


class PackedLSTM(nn.Module):
    """Sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) + x.shape[1] - len(x) + 1
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class Translator(nn.Module):
    """An LSTM encoder, and an LSTM decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 8)
        self.encoder, self.decoder = nn.LSTM(8, 8, batch_first=True), nn.LSTMCell(16, 8)
        self.output = nn.Linear(16, 60)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        states, (h, c) = self.encoder(self.embedding(x))
        h, c, out = h[0], c[0], []
        for t in range(y.shape[1]):
            weights = torch.softmax((states @ h.unsqueeze(-1)).squeeze(-1), 1)
            context = (weights.unsqueeze(1) @ states).squeeze(1)
            h, c = self.decoder(torch.cat([self.embedding(y[:, t]), context], 1), (h, c))
            out.append(self.output(torch.cat([h, context], 1)))
        return torch.stack(out, 1)


class VariationalAutoencoder(nn.Module):
    """A code drawn at random, and how far its distribution is from the standard one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, 1)
        code = torch.distributions.Normal(mean, spread.exp())
        apart = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0))
        return self.decoder(code.rsample()) - x, apart


class VectorQuantised(nn.Module):
    """The nearest of a book of codes, straight through in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.book, self.decoder = nn.Linear(12, 4), nn.Embedding(16, 4), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        code = self.book(torch.cdist(z, self.book.weight).argmin(1))
        return self.decoder(z + (code - z).detach()) - x, code - z.detach(), z - code.detach()


class Gumbel(nn.Module):
    """A discrete code, relaxed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.gumbel_softmax(self.encoder(x), tau=0.5, hard=True)) - x


class ExpertMixture(nn.Module):
    """Each token goes to its two best experts of four."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 4), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, which = (chosen == i).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, which, None] * expert(tokens[rows]))
        return out.view_as(x)


class RealNVP(nn.Module):
    """An invertible network: half of the variables scale and shift the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for layer in self.layers:
            kept, moved = x.chunk(2, 1)
            scale, shift = layer(kept).chunk(2, 1)
            x, volume = torch.cat([moved * scale.exp() + shift, kept], 1), volume + scale.sum(1)
        return x, volume


class NeuralODE(nn.Module):
    """Eight steps of the midpoint rule."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = x + 0.1 * self.field(x + 0.05 * self.field(x))
        return x


class FourierOperator(nn.Module):
    """Low frequencies are mixed by complex weights, kept as pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.beside = nn.Parameter(torch.randn(4, 4, 5, 2) / 4), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft(x)[..., :5]
        mixed = torch.einsum("bif,iof->bof", low, torch.view_as_complex(self.weight))
        return F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.beside(x))


class StateSpace(nn.Module):
    """S4D: a diagonal complex recurrence, as a convolution by FFT."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.turn = nn.Parameter(torch.rand(4, 8)), nn.Parameter(torch.rand(4, 8))
        self.out = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        time = torch.arange(x.shape[1])
        poles = torch.complex(-self.decay.exp(), self.turn)
        kernel = (self.out[..., None] * (poles[..., None] * time).exp()).sum(1).real
        n = 2 * x.shape[1]
        return torch.fft.irfft(torch.fft.rfft(x.mT, n) * torch.fft.rfft(kernel, n), n)[..., : x.shape[1]].mT


class DeepSets(nn.Module):
    """A set's elements, one by one, then their maximum and mean."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.each(x))
        return self.all(torch.cat([h.amax(1), h.mean(1)], 1))


class Siren(nn.Module):
    """Sines of sines, from places to values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sin(self.second(torch.sin(30 * self.first(x)))))


class HyperNetwork(nn.Module):
    """A network that makes another one's weights, for each example its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.out = nn.Linear(6, 6 * 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.maker(x).view(-1, 4, 6)
        return self.out(torch.tanh(torch.bmm(weights, x.unsqueeze(2)).squeeze(2)))
