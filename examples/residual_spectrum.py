"""How deep is a residual network? The path-length spectrum of its gradient, exact, and as sampling estimates it.

A network of n residual blocks, x ← x + f(x), is a sum over 2^n ways through it: at each block through f, or around.
Veit, Wilber and Belongie (2016) asked how much gradient the ways of each length carry, and sampled them. `Graded`
gives the answer in one pass: the part c_n of ∂loss/∂h, h being what goes into the first block, that is carried by
ways through exactly n blocks. The parts add up to the gradient.

    python examples/residual_spectrum.py docs/residual_spectrum.svg

trains 24 blocks on scikit-learn's digits (seconds), prints the spectrum and draws it. Lengths are those of one
training point, one seed and one batch; ‖c_n‖ is a norm of a sum, in which ways of one length may cancel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradtrace
from gradtrace.semirings import Graded

BLOCKS = 24


class Block(nn.Module):
    """x + W2 relu(W1 x); the branch is a module of its own, so that it can be named."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Residual(nn.Module):
    """64 pixels → width → blocks → 10 digits."""

    def __init__(self, blocks: int = BLOCKS, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.stem(x))

    def after(self, h: Tensor) -> Tensor:
        """Go on from the stem's result."""
        for block in self.blocks:
            h = block(h)
        return self.head(h)

    @property
    def branches(self) -> list[str]:
        """The names of what a path may go around."""
        return [f"blocks.{i}.branch" for i in range(len(self.blocks))]


def digits() -> tuple[Tensor, Tensor]:
    """Load scikit-learn's 1,797 digits: examples × 64 pixels in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def train(model: Residual, x: Tensor, y: Tensor, steps: int) -> float:
    """Train with Adam; give the accuracy on the last fifth, which is held out."""
    cut = len(x) * 4 // 5
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(steps):
        at = torch.randint(cut, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x[cut:]).argmax(1) == y[cut:]).double().mean())


def exact_parts(model: Residual, x: Tensor, y: Tensor) -> Tensor:
    """Give c_0 … c_blocks: lengths × examples × width, which add up to ∂loss/∂h."""
    h = model.stem(x).detach().requires_grad_()
    with gradtrace.record(model, names={"h": h}) as tape:
        loss = functional.cross_entropy(model.after(h), y)
    (found,) = tape.grad(loss, h, Graded(len(model.blocks), by=tuple(model.branches)))
    return found[:-1]  # nothing crosses more


class Ways:
    """The gradient along single ways through the blocks, by autograd, block by block."""

    def __init__(self, model: Residual, x: Tensor, y: Tensor) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []  # of each branch: what went in, what came out
        h = model.stem(x).detach()
        for block in model.blocks:
            given = h.detach().requires_grad_()
            branch = block.branch(given)  # type: ignore[operator,union-attr]
            self.pairs.append((given, branch))
            h = given.detach() + branch.detach()
        last = h.requires_grad_()
        (self.end,) = torch.autograd.grad(functional.cross_entropy(model.head(last), y), last)

    def gradient(self, through: Sequence[int]) -> Tensor:
        """Carry ∂loss/∂(last) back through some branches and around the others."""
        g = self.end
        for number in sorted(through, reverse=True):
            given, branch = self.pairs[number]
            (g,) = torch.autograd.grad(branch, given, g, retain_graph=True)
        return g

    def sampled_part(self, length: int, samples: int) -> tuple[Tensor, float]:
        """Estimate c_length from ways drawn uniformly: (the estimate, the mean norm of one way)."""
        blocks = len(self.pairs)
        drawn = [self.gradient(torch.randperm(blocks)[:length].tolist()) for _ in range(samples)]
        return comb(blocks, length) * torch.stack(drawn).mean(0), float(torch.stack([g.norm() for g in drawn]).mean())


@dataclass(frozen=True)
class Spectrum:
    """By length: the norm of the exact part, of its estimate, and number of ways × mean norm of one.

    `rest` is what the parts miss of autograd's gradient, of which it is a share.
    """

    exact: list[float]
    estimated: list[float]
    ways: list[float]
    accuracy: float
    cosine: list[float]
    rest: float


def measure(model: Residual, x: Tensor, y: Tensor, samples: int, accuracy: float = 0.0) -> Spectrum:
    """Compare the exact spectrum with a sampled one."""
    exact, ways = exact_parts(model, x, y), Ways(model, x, y)
    found = [ways.sampled_part(n, samples) for n in range(len(exact))]
    cosines = [float((unit(a) * unit(b)).sum()) for a, (b, _) in zip(exact, found, strict=True)]
    counts = [comb(len(exact) - 1, n) * mean for n, (_, mean) in enumerate(found)]
    norms = [float(part.norm()) for part in exact]
    h = model.stem(x).detach().requires_grad_()
    (whole,) = torch.autograd.grad(functional.cross_entropy(model.after(h), y), h)
    rest = float((exact.sum(0) - whole).norm() / whole.norm())
    return Spectrum(norms, [float(part.norm()) for part, _ in found], counts, accuracy, cosines, rest)


def unit(part: Tensor) -> Tensor:
    """Scale to norm 1, in float64: the longest ways carry 1e-18."""
    return part.double() / part.double().norm()


def mean_length(weights: Sequence[float]) -> float:
    """Average the lengths."""
    return sum(n * w for n, w in enumerate(weights)) / sum(weights)


def draw(spectrum: Spectrum) -> str:
    """Draw an SVG: bars for the exact spectrum, rings for the sampled one, each relative to the exact total."""
    left, bottom, step, height = 60, 260, 24, 210
    total, top = sum(spectrum.exact), max(*spectrum.exact, *spectrum.estimated) / sum(spectrum.exact)
    scale = height / top
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + step * len(spectrum.exact) + 20} 320" '
           'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for n, (exact, estimated) in enumerate(zip(spectrum.exact, spectrum.estimated, strict=True)):
        x, tall = left + n * step, exact / total * scale
        out.append(f'<rect x="{x + 3}" y="{bottom - tall:.1f}" width="{step - 6}" height="{tall:.1f}" fill="#4477aa"/>')
        out.append(f'<circle cx="{x + step / 2}" cy="{bottom - estimated / total * scale:.1f}" r="4" fill="none" '
                   'stroke="#cc3311" stroke-width="1.5"/>')  # fmt: skip
        out.append(f'<text x="{x + step / 2}" y="{bottom + 15}" text-anchor="middle">{n}</text>')
    out += [
        f'<text x="{left - 6}" y="{bottom - share * scale + 4:.1f}" text-anchor="end">{share:.1%}</text>'
        for share in (0.0, top / 2, top)
    ]
    out.append(f'<text x="{left}" y="{bottom + 36}">residual branches crossed; bars: exact (Graded), '
               "rings: sampled ways; share of Σ ‖c‖</text></svg>")  # fmt: skip
    return "\n".join(out) + "\n"


def main(picture: str | None = None) -> None:
    """Train, measure, print, and draw where a file is named."""
    torch.manual_seed(0)
    model, (x, y) = Residual(), digits()
    accuracy = train(model, x, y, 1500)
    batch = slice(0, 256)
    spectrum = measure(model, x[batch], y[batch], 200, accuracy)
    print(f"held-out accuracy {accuracy:.1%}")
    print("length  exact ‖c‖  sampled ‖c‖  cosine  ways × mean norm of one")
    for n, row in enumerate(zip(spectrum.exact, spectrum.estimated, spectrum.cosine, spectrum.ways, strict=True)):
        print(f"{n:6}  {row[0]:9.3g}  {row[1]:11.3g}  {row[2]:6.3f}  {row[3]:9.3g}")
    by_norm, by_way = mean_length(spectrum.exact), mean_length(spectrum.ways)
    # Of one length there is one way around all blocks, and one through all: nothing is left to sampling.
    assert min(spectrum.cosine[0], spectrum.cosine[-1]) > 0.9999
    assert abs(spectrum.estimated[0] / spectrum.exact[0] - 1) < 1e-4
    assert spectrum.rest < 1e-4, "the parts add up to the gradient that autograd gives"
    assert max(by_norm, by_way) < BLOCKS / 2, "of all ways, that is the mean"
    print(f"mean length: {by_norm:.2f} by ‖c‖, {by_way:.2f} by single ways; of all ways {BLOCKS / 2}")
    if picture:
        Path(picture).write_text(draw(spectrum), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
