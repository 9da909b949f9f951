"""The native kernels for both ends of signed path weights, against all candidates, bit for bit.

A flag may be raised where a bound says that something may be lost; it must be where something is. Without a flag
results are exact.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_operands import LOST, NAN_SEEN, Array, address, examples, instruction_set, numbers, same, steps, strided
from native_operands import native as _native

BEYOND = 4
ENDS = ("integers", "normal", "lognormal", "sparse", "denormal", "huge", "constant", "zero")  # finite
EDGES = (*ENDS, "infinite")

calls = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 30),
        "double": st.booleans(),
        "isa": st.sampled_from(_native.instruction_sets()),
        "threads": st.sampled_from([1, 2]),
        "g": st.sampled_from(ENDS),
        "w": st.sampled_from(EDGES),
        "nan": st.booleans(),
        "one_sign": st.booleans(),
    }
)


def ends(rng: np.random.Generator, call: dict, *shape: int) -> Array:
    """Draw (high, low), some without a path, laid out in some way."""
    drawn = np.sort(numbers(rng, call["g"], (2, *shape), call["double"]), 0)[::-1].copy()
    if call["one_sign"]:
        drawn = np.sort(np.abs(drawn), 0)[::-1].copy()
    drawn[:, (drawn == 0).any(0) | (rng.random(shape) < 0.2)] = np.nan  # no path has a weight of 0
    out = strided(np.empty((2, *shape), drawn.dtype), rng)
    out[...] = drawn
    return out


def edges(rng: np.random.Generator, call: dict, *shape: int) -> Array:
    drawn = numbers(rng, call["w"], shape, call["double"])
    if call["nan"] and drawn.size:
        drawn.flat[int(rng.integers(drawn.size))] = np.nan
    return strided(drawn, rng)


def met(w: Array, g: Array) -> Array:
    """Give w·(high, low), NaN where there is no edge or no path."""
    with np.errstate(all="ignore"):
        products = np.where(w == 0, np.nan, w) * g
    return products.astype(g.dtype)


def hull(candidates: Array) -> Array:
    """Give the ends of 2 × … × candidates: 2 × …, NaN where there is none."""
    none = np.isnan(candidates)
    high = np.where(none, -np.inf, candidates).max((0, -1), initial=-np.inf)
    low = np.where(none, np.inf, candidates).min((0, -1), initial=np.inf)
    return np.where(high == -np.inf, np.nan, np.stack([high, low])) if none.size else np.full((2, *high.shape), np.nan)


def check(flags: int, out: Array, want: Array, *, nan: bool, comfortable: bool = False) -> None:
    """Check results; where something is out of range flags must say so, and may not where nothing is near it."""
    assert bool(flags & NAN_SEEN) == nan
    if nan:
        return
    limits, live = np.finfo(out.dtype), want[~np.isnan(want)]
    if np.isinf(live).any():
        assert flags & BEYOND
    if (np.abs(live) < limits.tiny).any() and not flags & BEYOND:
        assert flags & LOST
    if comfortable:
        assert not flags
    if not flags:
        same(out, want)


def room(shape: tuple[int, ...], call: dict) -> Array:
    return np.full((2, *shape), 7, np.float64 if call["double"] else np.float32)


def planes(g: Array) -> list[int]:
    return [address(g[0]), address(g[1])]


@given(calls, st.tuples(st.integers(1, 3), *[st.integers(1, 70)] * 2, st.sampled_from([1, 2, 7, 30, 100, 170])))
@examples(250)
def test_products(call, shape):
    batch, m, n, k = shape
    rng = np.random.default_rng(call["seed"])
    a, w, out = ends(rng, call, batch, m, k), edges(rng, call, batch, n, k), room((batch, m, n), call)
    with instruction_set(call["isa"]):
        where = planes(a), steps(a[0]), address(w), steps(w), planes(out)
        flags = _native.signed_product(call["double"], batch, m, n, k, *where, call["threads"])
    want = hull(met(w[:, None], a[:, :, :, None]))
    check(flags, out, want, nan=call["nan"], comfortable={call["g"], call["w"]} <= {"integers", "normal", "constant"})


@given(calls, st.integers(0, 300))
@examples(150)
def test_scales(call, n):
    rng = np.random.default_rng(call["seed"])
    g, w, out = ends(rng, call, n).copy(order="C"), np.ascontiguousarray(edges(rng, call, n)), room((n,), call)
    with instruction_set(call["isa"]):
        flags = _native.signed_scale(call["double"], n, address(w), planes(g), planes(out), call["threads"])
    want = hull(met(w, g)[..., None])
    check(flags, out, want, nan=bool(np.isnan(w).any()))


@pytest.mark.parametrize("rank", [1, 2])
@given(calls, st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 7, 33, 150, 300]), st.booleans())
@examples(250)
def test_rows(rank, call, batch, rows, n, ones):
    rng = np.random.default_rng(call["seed"])
    g, out = ends(rng, call, batch, rows, n), room((batch, rows, n), call)
    own, *sides = (edges(rng, {**call, "nan": call["nan"] and i == 0}, rows, n) for i in range(1 + 2 * rank))
    left, right = sides[:rank], sides[rank:]
    if ones:  # as a norm's own Jacobian has it
        right[0] = strided(np.ones_like(right[0]), rng)
    with instruction_set(call["isa"]):
        factors = [own, *left, *right]
        given_ = planes(g), steps(g[0]), [address(f) for f in factors], [[0, *steps(f)] for f in factors]
        flags = _native.signed_low_rank(call["double"], batch, rows, n, *given_, planes(out), call["threads"])
    with np.errstate(all="ignore"):
        if rank == 1:  # l·g is rounded first, as the definition's kernels do
            beside = met(right[0][:, :, None], met(left[0], g)[:, :, :, None, :])
        else:
            first, second = (x[:, None, :] * y[:, :, None] for x, y in zip(left, right, strict=True))
            beside = met(first + second, g[:, :, :, None, :])  # … × j × i
    straight = np.broadcast_to(met(own, g)[..., None], beside.shape)
    want = hull(np.where(np.eye(n, dtype=bool), straight, beside))
    if not call["nan"] and any(np.isinf(f).any() for f in factors):
        assert flags & (BEYOND | LOST)
        return
    check(flags, out, want, nan=call["nan"])


def test_nothing_but_nan_reaches_a_row_without_a_path():
    g = np.full((2, 1, 1, 5), np.nan)
    own = np.ones((1, 5))
    out = room((1, 1, 5), {"double": True})
    factors = [address(own)] * 5
    flags = _native.signed_low_rank(
        True, 1, 1, 5, planes(g), steps(g[0]), factors, [[0, *steps(own)]] * 5, planes(out), 1
    )
    assert flags == 0
    assert np.isnan(out).all()
