"""Convolutions as one product each, over all offsets of the kernel at once, for carriers that multiply fast.

What a convolution merges at one scalar lies in a patch: towards the input, the result's scalars that it went to, which
meet it at one kernel offset each; towards the kernel, a pair of the input's and the result's scalars for each place of
each example. Patches are views of what was padded, copied once.
"""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.nn.functional import pad

from ..jacobians.structure import Convolved, Shape, Sliding
from ..semirings.base import Carrier, Element

ROOM = 1 << 24  # patch scalars held at a time


def as_products(s: Convolved, carrier: Carrier, g: Element, absent: float) -> Element | None:
    """Carry g (batch × y) back through a convolution; None where patches would take too much memory.

    Args:
        absent: what a plane holds where there is no path.
    """
    sizes, batch = s.sizes, g[0].shape[0]
    if batch != 1 or sizes.transposed or _patches(sizes, to_input=s.to_input) > ROOM:
        return None
    g = tuple(p.reshape(sizes.output) for p in g)
    out = (_to_input if s.to_input else _to_kernel)(sizes, s.other(), carrier, g, absent)
    return tuple(p.unsqueeze(0) for p in out)


def _patches(sizes: Sliding, *, to_input: bool) -> int:
    spread = prod(sizes.kernel[2:])
    return spread * (sizes.output[1] * sizes.input[0] * prod(sizes.input[2:]) if to_input else _places(sizes))


def _places(sizes: Sliding) -> int:
    return sizes.input[0] * sizes.input[1] * prod(sizes.output[2:])


def _to_input(sizes: Sliding, kernel: Tensor, carrier: Carrier, g: Element, absent: float) -> Element:
    """Multiply w (g × c × (o, K)) with patches of the result (g × (b, place of x) × (o, K))."""
    groups, (out, channels), offsets = sizes.groups, sizes.kernel[:2], sizes.kernel[2:]
    dims = len(offsets)
    place, taps = tuple(range(3, 3 + dims)), tuple(range(3 + dims, 3 + 2 * dims))
    patches = (_result_patches(p, sizes, absent).unflatten(1, (groups, out // groups)) for p in g)
    rows = tuple(p.permute(1, 0, *place, 2, *taps) for p in patches)  # of b × g × o × place of x × K
    # patches begin with the last offset
    w = kernel.flip(tuple(range(2, 2 + dims))).reshape(groups, out // groups, channels, prod(offsets)).transpose(1, 2)
    found = carrier.contract_over(w.reshape(groups, channels, -1), rows, 1 + dims)  # g × (b, place) × c
    shape = groups, sizes.input[0], *sizes.input[2:], channels
    back = 1, 0, 2 + dims, *range(2, 2 + dims)
    return tuple(p.reshape(shape).permute(back).reshape(sizes.input) for p in found)


def _to_kernel(sizes: Sliding, x: Tensor, carrier: Carrier, g: Element, absent: float) -> Element:
    """Multiply patches of the input (g × (c, K) × (b, place of y)) with the result (g × o × (b, place of y))."""
    del absent
    groups, (out, channels), offsets = sizes.groups, sizes.kernel[:2], sizes.kernel[2:]
    dims = len(offsets)
    seen = _windows(
        _padded(x, sizes.padding, sizes.padding, 0.0), offsets, sizes.output[2:], sizes.stride, sizes.dilation
    )
    seen = seen.unflatten(1, (groups, channels))  # b × g × c × place × K
    place, taps = tuple(range(3, 3 + dims)), tuple(range(3 + dims, 3 + 2 * dims))
    w = seen.permute(1, 2, *taps, 0, *place).reshape(groups, channels * prod(offsets), -1)
    rows = tuple(p.unflatten(1, (groups, out // groups)).permute(1, 2, 0, *place) for p in g)
    found = carrier.contract_over(w, rows, 1)  # g × o × (c, K)
    return tuple(p.reshape(sizes.kernel) for p in found)


def _result_patches(g: Tensor, sizes: Sliding, absent: float) -> Tensor:
    """Give, for each scalar of x and each offset k, the last first, where it went: b × O × place of x × K.

    x at q went to y at (q + padding - k·dilation) / stride where that is whole.
    """
    kernel, stride, padding, dilation = sizes.kernel[2:], sizes.stride, sizes.padding, sizes.dilation
    if any(step != 1 for step in stride):
        apart = g.new_full(
            (*g.shape[:2], *((n - 1) * step + 1 for n, step in zip(g.shape[2:], stride, strict=True))), absent
        )
        apart[(..., *(slice(None, None, step) for step in stride))] = g
        g = apart
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    before = tuple(r - p for r, p in zip(reach, padding, strict=True))
    after = tuple(n - 1 + p - (m - 1) for n, p, m in zip(sizes.input[2:], padding, g.shape[2:], strict=True))
    return _windows(_padded(g, before, after, absent), kernel, sizes.input[2:], (1,) * len(kernel), dilation)


def _padded(t: Tensor, before: Shape, after: Shape, value: float) -> Tensor:
    """Pad, or cut off where a number is negative, along all axes but the first two."""
    both = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return pad(t, both, value=value) if any(both) else t


def _windows(t: Tensor, kernel: Shape, places: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """View b × c × space as b × c × places × kernel."""
    lead, space = t.stride()[:2], t.stride()[2:]
    steps = *(a * b for a, b in zip(space, stride, strict=True)), *(a * b for a, b in zip(space, dilation, strict=True))
    return t.as_strided((*t.shape[:2], *places, *kernel), (*lead, *steps), t.storage_offset())
