"""The row kernels against brute force written from their definitions, bit by bit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_operands import (
    DTYPES,
    LOST,
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
    steps,
    strided,
    weighed,
)

Call = dict[str, Any]
sizes = st.integers(0, 40)
some = examples(150)


def operands(call: Call, *shapes: tuple[int, ...]) -> tuple[np.random.Generator, list[Array]]:
    """Draw operands; the first are cotangents, so they are not negative."""
    rng = np.random.default_rng(call["seed"])
    drawn = [numbers(rng, call["pools"][min(i, 2)], s, call["double"]) for i, s in enumerate(shapes)]
    drawn[0] = np.abs(drawn[0])
    return rng, drawn


def empty(call: Call, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Make room for results and winners, full of what must not stay there."""
    return np.full(shape, -7, DTYPES[call["double"]]), np.full(shape, -7, np.int32)


def rounded_once(y: Array) -> Array:
    """Give 1 - y·y with a single rounding: through exact fractions, or double for float32."""
    if y.dtype == np.float32:
        return (1 - y.astype(np.float64) ** 2).astype(np.float32)
    exact = [-np.inf if np.isinf(v) or abs(v) > 1e154 else float(1 - Fraction(v) ** 2) for v in y.ravel().tolist()]
    return np.array(exact).reshape(y.shape)


def pointwise_weight(kind: int, w: Array, c: float) -> Array:
    one = w.dtype.type(1)
    with np.errstate(all="ignore"):
        return {
            0: lambda: np.full_like(w, c),
            1: lambda: w,
            2: lambda: rounded_once(w),
            3: lambda: (one - w) * w,
            4: lambda: (w > 0).astype(w.dtype),
            5: lambda: np.full_like(w, c),
        }[kind]()


@some
@given(
    settings_of_a_call, st.lists(st.integers(0, 5), max_size=4), st.integers(0, 5), st.integers(0, 15), st.booleans()
)
def test_scale(call: Call, shape: list[int], kind: int, broadcast: int, large: bool) -> None:
    full = (*shape, 17) if large else tuple(shape)
    narrow = tuple(1 if broadcast >> d & 1 else n for d, n in enumerate(full))
    rng, (g, w) = operands(call, full, narrow)
    g, w = strided(g, rng), np.broadcast_to(strided(w, rng), full)
    out, _ = empty(call, full)
    with instruction_set(call["isa"]):
        given_w = kind in (1, 2, 3, 4)
        found = native.scale(
            call["double"], kind, full, address(g), steps(g), address(w) if given_w else 0,
            steps(w) if given_w else [], -1.5, call["f"], address(out), call["threads"],
        )  # fmt: skip
    weight = pointwise_weight(kind, w, -1.5)
    want = weighed(weight, g, call["f"])
    same(out, want)
    check_extent(found, want, (weight != 0) & (g != 0))


@some
@given(settings_of_a_call, st.integers(0, 400), st.floats(0, 1))
def test_scale_by_exponentials(call: Call, n: int, reach: float) -> None:
    kind = np.float64 if call["double"] else np.float32
    least = -746 if call["double"] else -105
    y = np.random.default_rng(n).uniform(least * reach - 1, 20, n).astype(kind)
    y[: min(n, 6)] = [0, -np.inf, np.inf, np.nan, least, 800][: min(n, 6)]
    g, (out, _) = np.ones(n, kind), empty(call, (n,))
    with instruction_set(call["isa"]), np.errstate(all="ignore"):
        native.scale(call["double"], 6, [n], address(g), [1], address(y), [1], 1.0, 1.0, address(out), call["threads"])
        want = np.exp(y.astype(np.longdouble))
        rounded = want.astype(kind)
    there = np.isfinite(rounded)
    unit = np.spacing(rounded[there]).astype(np.longdouble)
    assert (np.abs(out[there] - want[there]) <= 2 * unit).all()
    assert (out[y == -np.inf] == 0).all()
    assert np.isinf(out[y > 750]).all()


def test_scale_by_many_threads_and_formulas_of_torch() -> None:
    x = torch.randn(300, 257)
    ones, out = torch.ones_like(x), torch.empty_like(x)
    for kind, y, want in (
        (2, x.tanh(), torch.ops.aten.tanh_backward(ones, x.tanh())),
        (3, x.sigmoid(), torch.ops.aten.sigmoid_backward(ones, x.sigmoid())),
        (4, x.relu(), torch.ops.aten.threshold_backward(ones, x.relu(), 0)),
    ):
        native.scale(False, kind, [x.numel()], ones.data_ptr(), [1], y.data_ptr(), [1], 1.0, 1.0, out.data_ptr(), 2)
        assert torch.equal(out, want.abs())


@some
@given(settings_of_a_call, st.integers(0, 100), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5, 2.0**60]))
def test_merge(call: Call, n: int, indices: bool, wide: bool, fa: float) -> None:
    rng, (a, b) = operands(call, (n,), (n,))
    b = np.where(rng.random(n) < 0.3, a, np.abs(b))
    before = a.copy()
    ia, ib = rng.integers(-1, 99, n, dtype=np.int32), rng.integers(-1, 99, n, dtype=np.int32)
    old = ia.copy()
    choice = np.zeros(n, np.int32 if wide else np.uint8)
    ordinal = 70000 if wide else 200
    with instruction_set(call["isa"]):
        found = native.merge(
            call["double"], n, address(a), fa, address(b), call["f"], address(ia) if indices else 0, address(ib),
            address(choice), ordinal, wide, call["threads"],
        )  # fmt: skip
    one = np.ones((), a.dtype)
    va, vb = weighed(one, before, fa), weighed(one, b, call["f"])
    take = (vb > 0) & (vb >= va)
    same(a, np.where(take, vb, va))
    same(ia, np.where(take & indices, ib, old))
    same(choice, np.where(take, ordinal, 0))
    check_extent(found, a, (before != 0) | (b != 0))


@some
@given(settings_of_a_call, st.integers(0, 4), st.integers(0, 6), sizes, sizes, st.integers(0, 2), st.integers(0, 15))
def test_reduce_max(call: Call, outer: int, n1: int, n2: int, inner: int, layout: int, broadcast: int) -> None:
    full = (outer, n1, n2, inner)
    narrow = tuple(1 if broadcast >> d & 1 else n for d, n in enumerate(full))
    rng, (g, w) = operands(call, full, narrow)
    if layout:
        g, w = strided(g, rng), strided(w, rng)
    w = np.broadcast_to(w, full)
    out, index = empty(call, (outer, inner))
    with instruction_set(call["isa"]):
        found = native.reduce_max(
            call["double"], outer, (n1, n2), inner, address(g), steps(g), address(w) if layout != 2 else 0, steps(w),
            call["f"], address(out), address(index), call["threads"],
        )  # fmt: skip
    w = np.ones_like(w) if layout == 2 else w
    places = (0, 3, 1, 2)
    want, where = best(weighed(w, g, call["f"]).transpose(places).reshape(outer, inner, n1 * n2))
    same(out, want)
    same(index, where)
    check_extent(found, want, ((w != 0) & (g != 0)).any((1, 2)))


@pytest.mark.parametrize("shape", [(1, 5000, 3), (1, 4000, 40), (40000, 2, 1), (3, 1, 50000), (2, 30000, 1)])
def test_reduce_max_shares_the_work(shape: tuple[int, int, int]) -> None:
    outer, n, inner = shape
    rng = np.random.default_rng(0)
    g = np.asarray(rng.integers(0, 1000, shape), np.float32)
    out, index = np.empty((outer, inner), np.float32), np.empty((outer, inner), np.int32)
    for threads in (1, 2, 3):
        native.reduce_max(
            False, outer, n, inner, address(g), steps(g), 0, (0, 0, 0), 1.0, address(out), address(index), threads
        )
        same(out, g.max(1))
        same(index, np.where(out > 0, g.argmax(1), -1))


@some
@given(
    settings_of_a_call,
    st.integers(0, 3),
    sizes,
    st.sampled_from([0, 1, 2, 15, 70, 300]),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([True, False, None]),
)
def test_segment_max(call: Call, batch: int, rows: int, inner: int, size: int, init: bool, wide: bool | None) -> None:
    rng, (g, before) = operands(call, (batch, rows, inner), (batch, size, inner))
    index = rng.integers(-1, size, rows)
    before = np.abs(before)
    out, arg = before.copy(), np.full(before.shape, 5, np.int32)
    choice = np.zeros(before.shape, np.int32 if wide else np.uint8)
    with instruction_set(call["isa"]):
        found = native.segment_max(
            call["double"], batch, rows, inner, size, address(g), address(index), call["f"], address(out), address(arg),
            init, 0 if wide is None else address(choice), 9, bool(wide), call["threads"],
        )  # fmt: skip
    scaled = weighed(np.ones((), g.dtype), g, call["f"])
    # batch × size × inner × rows
    here = index == np.arange(size)[:, None, None]
    spread = np.broadcast_to(np.moveaxis(scaled, 1, -1)[:, None], (batch, size, inner, rows))
    value, r = best(np.where(here, spread, 0))
    start = np.zeros_like(before) if init else before
    take = (value > 0) & (value >= start)
    same(out, np.where(take, value, start))
    same(arg, np.where(take, r, -1 if init else 5))
    same(choice, np.where(take & (wide is not None), 9, 0))
    reached = (here & (np.moveaxis(g, 1, -1)[:, None] != 0)).any(-1)
    if rows >= size or init:
        check_extent(found, out, reached, reached)


@pytest.mark.parametrize(("rows", "inner", "size"), [(200_000, 1, 3000), (300, 700, 500), (2000, 40, 7)])
def test_segment_max_shares_the_work(rows: int, inner: int, size: int) -> None:
    rng = np.random.default_rng(1)
    g = np.asarray(rng.integers(0, 50, (rows, inner)), np.float32)
    index = rng.integers(0, size, rows)
    out, arg = np.empty((size, inner), np.float32), np.empty((size, inner), np.int32)
    want, where = np.zeros((size, inner), np.float32), np.full((size, inner), -1, np.int32)
    for r in range(rows):
        better = g[r] > want[index[r]]
        want[index[r]][better], where[index[r]][better] = g[r][better], r
    for threads in (1, 2):
        native.segment_max(
            False,
            1,
            rows,
            inner,
            size,
            address(g),
            address(index),
            1.0,
            address(out),
            address(arg),
            True,
            0,
            0,
            False,
            threads,
        )
        same(out, want)
        same(arg, where)


def rows_apart(call: Call, rng: np.random.Generator, x: Array, layout: int) -> Array:
    """Lay rows × n1 × n2 out as lines, permuted, or the same for every row."""
    if layout == 0:
        return x
    if layout == 1:
        return strided(x, rng)
    return np.broadcast_to(x[:1], x.shape) if len(x) else x


def exclusive(products: Array, own: Array) -> tuple[Array, Array]:
    """Put own on the diagonal of rows × j × i, and give the best of each j."""
    products = products.copy()
    n = products.shape[-1]
    products[:, np.arange(n), np.arange(n)] = own
    return best(products)


row_shapes = st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0, 1, 2, 3, 7, 16, 33, 70]))


@some
@given(settings_of_a_call, row_shapes, st.integers(0, 2), st.integers(0, 2))
def test_rank_one(call: Call, shape: tuple[int, int, int], layout: int, kind: int) -> None:
    rows, n1, n2 = shape
    n = n1 * n2
    rng, drawn = operands(call, *[shape] * 4)
    g, own, left, right = (rows_apart(call, rng, x, layout if i else min(layout, 1)) for i, x in enumerate(drawn))
    if kind:
        one = g.dtype.type(1)
        with np.errstate(all="ignore"):
            p = right
            own, left = (p * (one - p), p) if kind == 1 else (one - p, np.ones_like(p))
        if np.isnan(own).any():
            return
    out, arg = empty(call, (n1, rows, n2))
    out, arg = out.transpose(1, 0, 2), arg.transpose(1, 0, 2)
    with instruction_set(call["isa"]):
        found = native.rank_one(
            call["double"], kind, rows, n1, n2, address(g), steps(g), address(own), steps(own), address(left),
            steps(left), address(right), steps(right), call["f"], address(out), steps(out), address(arg),
            call["threads"],
        )  # fmt: skip
    flat = [x.reshape(rows, n) for x in (g, own, left, right)]
    v = weighed(flat[2], flat[0], call["f"])
    # the best other candidate comes first, then its product with right_j
    other, other_at = best(np.where(np.eye(n, dtype=bool), 0, v[:, None, :]))
    a, b = weighed(flat[1], flat[0], call["f"]), weighed(flat[3], other, 1.0)
    place = np.broadcast_to(np.arange(n), a.shape)
    take_own = (a > b) | ((a == b) & (place < other_at))
    want = np.where(take_own, a, b)
    where = np.where(want > 0, np.where(take_own, place, other_at), -1)
    same(out.reshape(rows, n), want)
    same(arg.reshape(rows, n), where)
    edges = (flat[3][:, :, None] != 0) & ((flat[2] != 0) & (flat[0] != 0))[:, None, :]
    edges[:, np.arange(n), np.arange(n)] = (flat[1] != 0) & (flat[0] != 0)
    rounded = np.broadcast_to((v < np.finfo(v.dtype).tiny)[:, None, :], edges.shape) & edges
    # of a candidate that vanished nobody knows where it was: the flag may then be raised for its own place too
    gone = (flat[2] != 0) & (flat[0] != 0) & (v == 0)
    rounded |= (gone.any(-1, keepdims=True) & (flat[3] != 0))[:, :, None]
    check_extent(found, want, edges.any(-1), rounded)


def rank_two_brute(g: Array, own: Array, left0: Array, left1: Array, t: Array, f: float) -> tuple[Array, Array, Array]:
    """Give (values, winners, whether an edge with two non-zero ends may exist) of rows × n."""
    with np.errstate(all="ignore"):
        weight = left0[:, None, :] + left1[:, None, :] * t[:, :, None]  # rows × j × i
    products = weighed(weight, np.broadcast_to(g[:, None, :], weight.shape), f)
    want, where = exclusive(products, weighed(own, g, f))
    live = (g != 0) & ((left0 != 0) | (left1 != 0))
    return want, where, live.any(-1, keepdims=True) | ((own != 0) & (g != 0))


def rank_two_native(call: Call, parts: list[Array], out: Array, arg: Array) -> tuple[float, float, int]:
    rows, n1, n2 = parts[0].shape
    with instruction_set(call["isa"]):
        return native.rank_two(
            call["double"], rows, n1, n2, *[v for x in parts for v in (address(x), steps(x))], call["f"], address(out),
            steps(out), address(arg), call["threads"],
        )  # fmt: skip


@some
@given(settings_of_a_call, row_shapes, st.integers(0, 2))
def test_rank_two_of_short_rows(call: Call, shape: tuple[int, int, int], layout: int) -> None:
    rows, n1, n2 = shape
    n = n1 * n2
    rng, drawn = operands(call, *[shape] * 5)
    parts = [rows_apart(call, rng, x, layout if i else min(layout, 1)) for i, x in enumerate(drawn)]
    out, arg = (x.transpose(1, 0, 2) for x in empty(call, (n1, rows, n2)))
    found = rank_two_native(call, parts, out, arg)
    flat = [x.reshape(rows, n) for x in parts]
    with np.errstate(all="ignore"):
        weight = flat[2][:, None, :] + flat[3][:, None, :] * flat[4][:, :, None]
    weight[:, np.arange(n), np.arange(n)] = 0
    if np.isnan(weight).any():  # infinity minus infinity: no weight at all
        assert found[2] & NAN_SEEN
        return
    want, where, edges = rank_two_brute(*flat, call["f"])
    same(out.reshape(rows, n), want)
    same(arg.reshape(rows, n), where)
    check_extent(found, want, (want > 0) & edges, edges)


SHAPES_OF_T = ("normal", "two values", "one value", "ties", "clusters", "outlier", "heavy", "wide")


def places(rng: np.random.Generator, kind: str, n: int) -> Array:
    """Draw the t of a row in some shape that is hard for a search by intervals."""
    x = rng.standard_normal(n)
    return {
        "normal": x,
        "two values": np.sign(x),
        "one value": np.full(n, 0.5),
        "ties": np.round(x),
        "clusters": rng.choice([-1.0, 0.0, 2.0], n) + 1e-6 * x,
        "outlier": np.where(np.arange(n) == n // 2, 30.0, 0.01 * x),
        "heavy": np.sinh(2 * x),
        "wide": np.exp(20 * x) * np.sign(rng.standard_normal(n)),
    }[kind]


@examples(150)
@given(
    settings_of_a_call,
    st.sampled_from([49, 64, 128, 129, 200, 333, 700]),
    st.sampled_from(SHAPES_OF_T),
    st.sampled_from(["lognormal", "constant", "integers", "sparse", "one", "zero", "denormal", "ramp"]),
    st.booleans(),
)
def test_rank_two_of_long_rows(call: Call, n: int, shape_of_t: str, shape_of_g: str, norm: bool) -> None:
    rng = np.random.default_rng(call["seed"])
    dtype, rows = DTYPES[call["double"]], 2
    t = np.stack([places(rng, shape_of_t, n) for _ in range(rows)])
    if shape_of_g == "one":
        g = np.eye(n)[rng.integers(0, n, rows)]
    elif shape_of_g == "ramp":
        g = 1 / np.sqrt(1 + t * t)  # every candidate is near the envelope somewhere
    else:
        g = np.abs(numbers(rng, shape_of_g, (rows, n), call["double"]))
    own, left0, left1 = rng.standard_normal((3, rows, n))
    if norm:
        a = rng.random() if rng.random() < 0.5 else rng.random((rows, n))
        own, left0, left1 = a * (1 - (1 + t * t) / n), np.broadcast_to(-a / n, (rows, n)), -a * t / n
    with np.errstate(over="ignore"):
        parts = [np.ascontiguousarray(x, dtype=dtype).reshape(rows, 1, n) for x in (g, own, left0, left1, t)]
    out, arg = empty(call, (rows, 1, n))
    found = rank_two_native(call, parts, out, arg)
    want, where, edges = rank_two_brute(*[x.reshape(rows, n) for x in parts], call["f"])
    same(out.reshape(rows, n), want)
    same(arg.reshape(rows, n), where)
    check_extent(found, want, (want > 0) & edges, edges)


@pytest.mark.parametrize("shape_of_t", ["normal", "one value", "ties", "outlier"])
@pytest.mark.parametrize("constant", [False, True])
def test_rank_two_of_very_long_rows(shape_of_t: str, constant: bool) -> None:
    rng, n = np.random.default_rng(3), 5000
    t = places(rng, shape_of_t, n)
    g = np.ones(n) if constant else np.exp(2 * rng.standard_normal(n))
    parts = [np.asarray(x, np.float32).reshape(1, 50, n // 50) for x in (g, 1 - t * t / n, np.ones(n) / n, t / n, t)]
    out, arg = np.empty((1, 50, n // 50), np.float32), np.empty((1, 50, n // 50), np.int32)
    rank_two_native({"isa": native.instruction_set(), "double": False, "f": 1.0, "threads": 1}, parts, out, arg)
    want, where, _ = rank_two_brute(*[x.reshape(1, n) for x in parts], 1.0)
    same(out.reshape(1, n), want)
    same(arg.reshape(1, n), where)


@some
@given(settings_of_a_call, st.integers(1, 4), st.sampled_from([5, 150]), st.booleans(), st.booleans(), st.booleans())
def test_standard_is_rank_two_with_the_factors_of_torch(
    call: Call, rows: int, n: int, gamma: bool, short: bool, narrow: bool
) -> None:
    """Also where factors are of less precision than what is carried (`narrow`): they are rounded in their own."""
    rng = np.random.default_rng(call["seed"])
    dtype, kind = DTYPES[call["double"]], DTYPES[call["double"] and not narrow]
    g = np.abs(rng.standard_normal((rows, 1, n))).astype(dtype)
    hat = rng.standard_normal((rows, 1, n)).astype(kind)
    scale = np.broadcast_to(rng.random((rows, 1, 1)).astype(kind), g.shape)
    weight = np.broadcast_to(rng.standard_normal((1, 1, n)).astype(kind), g.shape)
    a = torch.tensor(weight) * torch.tensor(scale) if gamma else torch.tensor(scale)
    x = torch.tensor(hat)
    factors = [(a * (1 - (1 + x * x) / n)), -a / n, -a * x / n, x]
    want, where = empty(call, g.shape)
    rank_two_native(call, [g, *[p.contiguous().numpy().astype(dtype) for p in factors]], want, where)
    out, arg = empty(call, g.shape)
    arg = arg.astype(np.int16) if short else arg
    with instruction_set(call["isa"]):
        native.standard(
            call["double"], call["double"] and not narrow, rows, 1, n, address(g), steps(g), address(hat), steps(hat),
            address(weight) if gamma else 0, steps(weight), address(scale), steps(scale), float(n), call["f"],
            address(out), steps(out), address(arg), short, call["threads"],
        )  # fmt: skip
    same(out, want)
    same(arg.astype(np.int32), where)


@some
@given(settings_of_a_call, st.integers(0, 300), st.integers(1, 200), st.booleans())
def test_tally(call: Call, n: int, kinds: int, weighted: bool) -> None:
    rng, (strength,) = operands(call, (n,))
    strength = np.where(strength < 1e30, strength, 1)
    bits = rng.integers(0, 1 << 63, kinds, dtype=np.uint64)[rng.integers(0, kinds, n)]
    found = native.tally(call["double"], address(bits), address(strength) if weighted else 0, n, call["threads"])
    live = strength > 0 if weighted else np.ones(n, bool)
    want = {
        int(x): (int((live & (bits == x)).sum()), strength[live & (bits == x)].astype(float).sum())
        for x in set(bits[live])
    }
    assert {x: count for x, count, _ in found} == {x: count for x, (count, _) in want.items()}
    for x, _, total in found:
        np.testing.assert_allclose(total, want[x][1] if weighted else 0, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_absolute_values_are_written_over_what_was_there(kind: Any, threads: int) -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 4095, 4097, 300_000):
        given = np.where(rng.random(n) < 0.5, 0.0, rng.standard_normal(n)).astype(kind)
        numbers = given.copy()
        high, low, flags = native.absolute(kind is np.float64, address(numbers), n, threads)
        same(numbers, np.abs(given))
        some_are = numbers[numbers > 0]
        assert (high, low, flags) == (numbers.max(initial=0), some_are.min(initial=np.inf), 0)
    numbers[7] = np.nan
    assert native.absolute(kind is np.float64, address(numbers), n, threads)[2] & NAN_SEEN


def test_tally_gives_up_on_too_many_sets_and_threads_agree() -> None:
    bits = np.arange(65536, dtype=np.uint64)
    assert len(native.tally(False, address(bits), 0, len(bits), 2)) == 65536
    bits = np.arange(65537, dtype=np.uint64)
    assert native.tally(False, address(bits), 0, len(bits), 1) is None
    assert native.tally(False, address(bits), 0, len(bits), 2) is None
    bits = (np.arange(100_000, dtype=np.uint64) ** 2) % 1013
    assert sorted(native.tally(False, address(bits), 0, len(bits), 2)) == sorted(
        native.tally(False, address(bits), 0, len(bits), 1)
    )


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("where", [0, 20])
def test_a_nan_in_any_operand_is_reported(isa: str, where: int) -> None:
    n = 21
    fine, bad, out, arg = np.ones(n, np.float32), np.ones(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    bad[where] = np.nan
    p, q, o, i = address(fine), address(bad), address(out), address(arg)
    index, line, s3 = np.zeros(n, np.int64), [n, n, 1], (0, 1, 0)
    five = [[q if x == y else p for y in range(5)] for x in range(5)]

    def lines(pointers: list[int]) -> list[Any]:
        return [v for x in pointers for v in (x, line)]

    with instruction_set(isa):
        flags = [
            native.scale(False, 1, [n], q, [1], p, [1], 1.0, 1.0, o, 1)[2],
            native.scale(False, 1, [n], p, [1], q, [1], 1.0, 1.0, o, 1)[2],
            native.scale(False, 0, [n], p, [1], 0, [1], np.nan, 1.0, o, 1)[2],
            native.merge(False, n, p, 1.0, q, 1.0, 0, 0, 0, 0, False, 1)[2],
            native.reduce_max(False, 1, n, 1, q, s3, p, s3, 1.0, o, i, 1)[2],
            native.reduce_max(False, 1, n, 1, p, s3, q, s3, 1.0, o, i, 1)[2],
            native.reduce_max(False, 1, 1, n, q, (0, 0, 1), 0, s3, 1.0, o, i, 1)[2],
            native.segment_max(False, 1, n, 1, 1, q, address(index), 1.0, o, i, True, 0, 0, False, 1)[2],
            *[native.rank_one(False, 0, 1, 1, n, *lines(row[:4]), 1.0, o, line, i, 1)[2] for row in five[:4]],
            *[native.rank_two(False, 1, 1, n, *lines(row), 1.0, o, line, i, 1)[2] for row in five],
        ]  # fmt: skip
    assert all(flag & NAN_SEEN for flag in flags), flags


def test_a_result_that_underflows_is_reported() -> None:
    tiny = np.finfo(np.float32).tiny
    small, out, arg = np.full(3, tiny, np.float32), np.empty(3, np.float32), np.empty(3, np.int32)
    flags = native.scale(False, 1, [3], address(small), [1], address(small), [1], 1.0, 1.0, address(out), 1)[2]
    assert flags == LOST
    flags = native.merge(False, 3, address(out), 1.0, address(small), 1.0, 0, 0, 0, 0, False, 1)[2]
    assert flags == 0  # what is rounded loses to a normal number
    same(out, small)
    assert (
        native.reduce_max(
            False, 1, 3, 1, address(small), (0, 1, 0), address(small), (0, 1, 0), 1.0, address(out), address(arg), 1
        )[2]
        == LOST
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tally_does_not_depend_on_the_sets_of_scalars_without_a_trace(dtype):
    torch.manual_seed(0)
    weight = torch.rand(5000, dtype=dtype) * (torch.rand(5000) > 0.4)
    bits = torch.randint(4, (5000,)).sort().values
    other = torch.where(weight > 0, bits, torch.randint(1000, (5000,)))
    double = dtype is torch.float64
    found = [native.tally(double, b.data_ptr(), weight.data_ptr(), len(weight), 1) for b in (bits, other)]
    assert found[0] == found[1]  # to the last bit, in the same order
