"""Per-example results through the image rules: a batch traces as its examples alone would."""

from __future__ import annotations

import torch
from torch import nn

import gradtrace


class Images(nn.Module):
    """Convolution, group norm, then transposed convolution and pooling beside a 1 × 1 one, interpolation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.side = nn.Conv2d(4, 2, 1)
        self.out = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.down(x)))
        x = nn.functional.avg_pool2d(4 * self.up(x), 2, ceil_mode=True) + self.side(x)
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return self.out(nn.functional.max_pool2d(x, 2).mean((2, 3)))


def test_batch_is_its_examples():
    torch.manual_seed(0)
    model, x, y = Images().double(), torch.randn(3, 2, 6, 6).double(), torch.tensor([0, 2, 1])
    with gradtrace.record(model, examples=x) as tape:
        loss = nn.functional.cross_entropy(model(x), y)
    trace = tape.trace(loss)
    table = {r.component: r for r in trace.influence(["up", "side"], of="down.*").rows}
    alone = []
    for b in range(3):
        with gradtrace.record(model, examples=x[b : b + 1]) as one:
            term = nn.functional.cross_entropy(model(x[b : b + 1]), y[b : b + 1])
        alone.append({r.component: r.share for r in one.trace(term).influence(["up", "side"], of="down.*").rows})
    assert 0 < table["up"].share < 1
    for name, row in table.items():
        assert abs(row.share - sum(a[name] for a in alone) / 3) < 1e-12
