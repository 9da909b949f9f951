"""Fourier transforms: every frequency weighs every place, by a cosine and a sine that are exact where they are 0 or ±1.

The axes that are transformed form a row; rows are independent of one another and share one matrix. Its entries are the
edges of the scalar graph, so a transform over two axes has all pairs of places, whatever a fast algorithm saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm, prod, tau

import torch
from torch import Tensor

from ...errors import MissingRule
from ...recording.record import Call
from ..structure import LETTERS, Contraction
from . import dense
from .complex_numbers import rows
from .pairs import blocked, numbers
from .table import Edge, argument, result


def fourier(call: Call) -> Iterator[Edge]:
    """y[k] = scale · Σ_n x[n] e^{∓2πi Σ_d k_d n_d / N_d}; of half a spectrum, the other half is its mirror image."""
    x, y = (v.shape for v in (numbers(call).inputs[0], numbers(call).outputs[0]))  # type: ignore[union-attr]
    dims = [d % len(x) for d in argument(call, "dim")]
    entries = prod(x[d] * y[d] for d in dims)
    if entries > dense.LIMIT:
        raise MissingRule(
            f"{call.where} connects {entries:,} pairs of places in each row, more than gradtrace.rules.dense.LIMIT "
            f"({dense.LIMIT:,}): transform fewer places at once, or raise the limit"
        )
    of_y = LETTERS[: len(y)]
    of_x = [LETTERS[len(y) + d] if d in dims else of_y[d] for d in range(len(x))]
    w = "".join(of_y[d] for d in dims) + "".join(of_x[d] for d in dims)
    one = Contraction(of_y, "".join(of_x), y, x, w)
    pair = call.inputs[0].dtype.is_complex
    yield 0, 0, blocked(one, lambda: matrix(call, dims, x, y), call.gives_complex, pair)


def matrix(call: Call, dims: list[int], x: tuple[int, ...], y: tuple[int, ...]) -> Tensor:
    """Give the complex weights: places of y along the axes `dims`, then those of x."""
    sizes, last = [max(x[d], y[d]) for d in dims], dims[-1]
    if call.base == "_fft_c2r":
        sizes[-1] = y[last]
    common = lcm(*sizes)
    phase = torch.zeros((), dtype=torch.int64)
    for i, (d, n) in enumerate(zip(dims, sizes, strict=True)):
        turn = torch.arange(y[d])[:, None] * torch.arange(x[d]) % n * (common // n)
        view = [1] * (2 * len(dims))
        view[i], view[len(dims) + i] = turn.shape
        phase = (phase + turn.reshape(view)) % common
    forward = call.base == "_fft_r2c" or (call.base == "_fft_c2c" and argument(call, "forward"))
    scale = float(prod(sizes)) ** (0, -0.5, -1)[argument(call, "normalization")]
    cosine, sine = (part * scale for part in circle(common))
    if call.base == "_fft_c2r":  # what stands for its mirror image as well
        k = torch.arange(x[last])
        counts = ((k > 0) & (2 * k < sizes[-1])).double() + (2 * k <= sizes[-1]).double()
    else:
        counts = torch.ones((), dtype=torch.float64)
    kind = result(call).dtype
    u, v = cosine[phase] * counts, (-sine if forward else sine)[phase] * counts
    return torch.complex(u.to(kind), v.to(kind))


def circle(n: int) -> tuple[Tensor, Tensor]:
    """Give the cosine and the sine of n equal parts of a turn.

    >>> circle(4)[1].tolist()
    [0.0, 1.0, 0.0, -1.0]
    """
    m = torch.arange(n)
    quarters = 4 * m % n == 0
    angle = m.double() * (tau / n)
    return tuple(torch.where(quarters, f.round() + 0.0, f) for f in (angle.cos(), angle.sin()))  # type: ignore[return-value]


rows("_fft_r2c _fft_c2r _fft_c2c", lambda name: fourier)
