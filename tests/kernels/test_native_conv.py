"""The convolutions under max against the dense Jacobian of one example, bit by bit."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_operands import (
    DTYPES,
    NAN_SEEN,
    Array,
    address,
    best,
    check_extent,
    examples,
    instruction_set,
    native,
    numbers,
    same,
    settings_of_a_call,
    weighed,
)

Call = dict[str, Any]
Sizes = tuple[int, ...]


class Geometry:
    """Shapes of one convolution, and its edges (y scalar, kernel entry, x scalar) within one example."""

    def __init__(
        self,
        transposed: bool,
        groups: int,
        channels: tuple[int, int],
        x: Sizes,
        taps: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
    ) -> None:
        self.transposed, self.groups, self.stride, self.padding, self.dilation = (
            transposed,
            groups,
            stride,
            padding,
            dilation,
        )
        self.taps = taps
        axes = range(len(x))
        reach = [dilation[d] * (taps[d] - 1) for d in axes]
        if transposed:
            y = tuple(max(0, (x[d] - 1) * stride[d] + reach[d] + 1 - 2 * padding[d]) for d in axes)
        else:
            y = tuple(max(0, (x[d] + 2 * padding[d] - reach[d] - 1) // stride[d] + 1) for d in axes)
        c, o = channels  # of a group
        self.c, self.o = c, o
        self.x, self.y = (groups * c, *x), (groups * o, *y)
        self.w = (groups * c, o, *taps) if transposed else (groups * o, c, *taps)

    def edges(self) -> list[tuple[int, int, int]]:
        small, large = (self.x, self.y) if self.transposed else (self.y, self.x)
        cs, cl = (self.c, self.o) if self.transposed else (self.o, self.c)
        out = []
        for place in product(*map(range, small[1:])):
            for tap in product(*map(range, self.taps)):
                at = tuple(
                    p * s + k * d - q
                    for p, s, k, d, q in zip(place, self.stride, tap, self.dilation, self.padding, strict=True)
                )
                if any(a < 0 or a >= n for a, n in zip(at, large[1:], strict=True)):
                    continue
                for g, i, j in product(range(self.groups), range(cs), range(cl)):
                    one = np.ravel_multi_index((g * cs + i, *place), small)
                    other = np.ravel_multi_index((g * cl + j, *at), large)
                    entry = np.ravel_multi_index((g * cs + i, j, *tap), self.w)
                    out.append((other, entry, one) if self.transposed else (one, entry, other))
        return [(int(a), int(b), int(c)) for a, b, c in out]

    def run(
        self, call: Call, what: str, batch: int, first: Array, g: Array, out: Array, arg: Array
    ) -> tuple[float, float, int]:
        with instruction_set(call["isa"]):
            return getattr(native, what)(
                call["double"], self.transposed, (batch, *self.x), self.w, (batch, *self.y), self.groups, self.stride,
                self.padding, self.dilation, address(first), address(g), call["f"], address(out), address(arg),
                call["threads"],
            )  # fmt: skip


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    axes = draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> Sizes:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    largest = {1: 9, 2: 5, 3: 3}[axes]
    channels = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return Geometry(
        draw(st.booleans()),
        draw(st.integers(1, 2)),
        channels,
        sizes(1, largest),
        sizes(1, 3),
        sizes(1, 3),
        sizes(0, 2),
        sizes(1, 2),
    )


@examples(250)
@given(settings_of_a_call, geometries(), st.integers(0, 3))
def test_conv(call: Call, geo: Geometry, batch: int) -> None:
    rng = np.random.default_rng(call["seed"])
    double, dtype = call["double"], DTYPES[call["double"]]
    g = np.abs(numbers(rng, call["pools"][0], (batch, *geo.y), double))
    x = numbers(rng, call["pools"][1], (batch, *geo.x), double)
    w = numbers(rng, call["pools"][2], geo.w, double)
    y_numel, x_numel = int(np.prod(geo.y)), int(np.prod(geo.x))
    edges = np.array(geo.edges(), np.int64).reshape(-1, 3)
    # a cotangent that vanishes may be reported whatever it meets
    vanishes = (g != 0) & (weighed(np.ones((), dtype), g, call["f"]) == 0)

    # towards x: x scalar × y scalar
    jacobian = np.zeros((x_numel, y_numel), dtype)
    jacobian[edges[:, 2], edges[:, 0]] = w.ravel()[edges[:, 1]]
    rows = g.reshape(batch, 1, y_numel)
    want, where = best(weighed(np.broadcast_to(jacobian, (batch, x_numel, y_numel)), rows, call["f"]))
    out, arg = np.full((batch, *geo.x), -7, dtype), np.full((batch, *geo.x), -7, np.int32)
    found = geo.run(call, "conv_input", batch, w, g, out, arg)
    same(out.reshape(want.shape), want)
    same(arg.reshape(want.shape), where)
    check_extent(found, want, ((jacobian != 0) & (rows != 0)).any(-1), vanishes)

    # towards the kernel: kernel entry × (example, y scalar)
    jacobian = np.zeros((w.size, batch, y_numel), dtype)
    jacobian[edges[:, 1], :, edges[:, 0]] = x.reshape(batch, x_numel)[:, edges[:, 2]].T
    jacobian = jacobian.reshape(w.size, batch * y_numel)
    want, where = best(weighed(jacobian, g.reshape(1, -1), call["f"]))
    out, arg = np.full(geo.w, -7, dtype), np.full(geo.w, -7, np.int32)
    found = geo.run(call, "conv_weight", batch, x, g, out, arg)
    same(out.ravel(), want)
    same(arg.ravel(), where)
    check_extent(found, want, ((jacobian != 0) & (g.reshape(1, -1) != 0)).any(-1), vanishes)


LARGE = {
    "3×3": Geometry(False, 1, (70, 5), (12, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride 2": Geometry(False, 1, (7, 70), (17, 16), (3, 3), (2, 2), (1, 1), (1, 1)),
    "1×1, stride 2": Geometry(False, 1, (20, 66), (8, 8), (1, 1), (2, 2), (0, 0), (1, 1)),
    "groups": Geometry(False, 3, (3, 7), (9, 9), (3, 3), (1, 1), (1, 1), (2, 1)),
    "transposed": Geometry(True, 2, (9, 10), (7, 8), (4, 3), (2, 2), (1, 0), (1, 1)),
    "long": Geometry(False, 1, (2, 3), (40_000,), (5,), (1,), (2,), (1,)),
    # enough channels and steps on both sides to go by patches
    "patches": Geometry(False, 1, (33, 34), (9, 10), (3, 3), (2, 1), (1, 1), (1, 2)),
    "patches of groups": Geometry(False, 2, (40, 36), (90,), (5,), (1,), (2,), (1,)),
    "patches, transposed": Geometry(True, 1, (40, 35), (6, 8), (3, 4), (2, 1), (1, 2), (1, 1)),
    "patches, several chunks": Geometry(False, 1, (33, 32), (80, 31), (3, 3), (2, 1), (1, 1), (1, 1)),
    "patches, three axes": Geometry(False, 1, (32, 32), (3, 4, 5), (2, 3, 3), (1, 1, 2), (1, 1, 0), (1, 1, 1)),
}


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pool", ["lognormal", "integers", "infinite", "denormal"])
@pytest.mark.parametrize("name", LARGE)
def test_large_convolutions(name: str, pool: str, threads: int, isa: str) -> None:
    """Every weighted pair reaches what the kernel says, and nothing reaches more: checked through patches."""
    geo, batch, (x, w, g) = LARGE[name], 3, large_operands(name, pool)
    call = {"double": False, "isa": isa, "threads": threads, "f": 1.0}
    for what, first, shape in (("conv_input", w, (batch, *geo.x)), ("conv_weight", x, geo.w)):
        out, arg = np.empty(shape, np.float32), np.empty(shape, np.int32)
        found = geo.run(call, what, batch, first, g, out, arg)
        want, where, met = large_answer(name, pool, what)
        same(out.ravel(), want)
        same(arg.ravel(), where)
        check_extent(found, out.ravel(), met, np.array(True))


@cache
def large_operands(name: str, pool: str) -> tuple[Array, Array, Array]:
    """Draw x, w and g."""
    geo, batch, rng = LARGE[name], 3, np.random.default_rng(0)
    g = np.abs(numbers(rng, pool, (batch, *geo.y), False))
    others = "normal" if pool == "lognormal" else pool
    return numbers(rng, others, (batch, *geo.x), False), numbers(rng, others, geo.w, False), g


@cache
def large_answer(name: str, pool: str, what: str) -> tuple[Array, Array, Array]:
    """Give (values, winners, whether a pair of non-zero numbers meets there): the same for all ways to compute it."""
    geo, (x, w, g) = LARGE[name], large_operands(name, pool)
    size = x.size if what == "conv_input" else w.size
    want, where, met = np.zeros(size, np.float32), np.full(size, -1, np.int64), np.zeros(size, bool)
    for n in range(len(x)):
        for y, e, at in brute_edges(geo):
            target = n * x[0].size + at if what == "conv_input" else e
            source = y if what == "conv_input" else n * g[0].size + y
            weight, cotangent = w.ravel()[e] if what == "conv_input" else x[n].ravel()[at], g[n].ravel()[y]
            value = weighed(weight, cotangent, 1.0)
            met[target[(weight != 0) & (cotangent != 0)]] = True
            if what == "conv_weight" and len(e):  # one entry for the whole chunk
                first_best = slice(value.argmax(), value.argmax() + 1)
                target, source, value = target[first_best], source[first_best], value[first_best]
            better = (value > want[target]) | ((value == want[target]) & (source < where[target]))
            want[target[better]], where[target[better]] = value[better], source[better]
    return want, where, met


@cache
def brute_edges(geo: Geometry) -> list[tuple[Array, Array, Array]]:
    """Give edges in chunks (y scalars, kernel entries, x scalars) of one entry each, where no x scalar occurs twice."""
    small, large = (geo.x, geo.y) if geo.transposed else (geo.y, geo.x)
    cs, cl = (geo.c, geo.o) if geo.transposed else (geo.o, geo.c)
    axes = [np.arange(n) for n in small[1:]]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    out = []
    for tap in product(*map(range, geo.taps)):
        at = place * np.array(geo.stride) + np.array(tap) * np.array(geo.dilation) - np.array(geo.padding)
        inside = ((at >= 0) & (at < np.array(large[1:]))).all(-1)
        one, other = np.ravel_multi_index(place[inside].T, small[1:]), np.ravel_multi_index(at[inside].T, large[1:])
        for channel, i in product(range(geo.groups * cs), range(cl)):
            a = channel * int(np.prod(small[1:])) + one
            b = (channel // cs * cl + i) * int(np.prod(large[1:])) + other
            e = np.full(len(a), np.ravel_multi_index((channel, i, *tap), geo.w))
            out.append((b, e, a) if geo.transposed else (a, e, b))
    return out


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_a_nan_in_any_operand_is_reported(isa: str) -> None:
    geo = Geometry(False, 1, (2, 3), (5, 5), (3, 3), (1, 1), (1, 1), (1, 1))
    call = {"double": False, "isa": isa, "threads": 1, "f": 1.0}
    for what, shape in (("conv_input", geo.w), ("conv_weight", (1, *geo.x))):
        for bad in range(2):
            pair = [np.ones(shape, np.float32), np.ones((1, *geo.y), np.float32)]
            pair[bad].flat[-1] = np.nan
            result = geo.x if what == "conv_input" else geo.w
            out, arg = np.empty(result, np.float32), np.empty(result, np.int32)
            assert geo.run(call, what, 1, *pair, out, arg)[2] & NAN_SEEN


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="three to five axes"):
        native.conv_input(False, False, [1, 1], [1, 1], [1, 1], 1, [1], [0], [1], 0, 0, 1.0, 0, 0, 1)
    with pytest.raises(ValueError, match="one to three spatial axes"):
        native.conv_input(False, False, [0, 1, 1], [1, 1, 1], [0, 1, 1], 1, [], [0], [1], 0, 0, 1.0, 0, 0, 1)


def test_the_jacobian_of_the_oracle_is_torch_s() -> None:
    geo = Geometry(False, 2, (2, 3), (5, 4), (3, 2), (2, 1), (1, 0), (1, 2))
    x, w = torch.randn(1, *geo.x, dtype=torch.float64), torch.randn(geo.w, dtype=torch.float64)
    y = torch.conv2d(x, w, None, geo.stride, geo.padding, geo.dilation, geo.groups).flatten()
    found = torch.zeros_like(y)
    for i, e, j in geo.edges():
        found[i] += w.flatten()[e] * x.flatten()[j]
    torch.testing.assert_close(found, y)
