"""The native kernels for several path weights a scalar, against sorting all candidates, bit for bit.

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

TOO_LARGE = 4
LISTS = ("integers", "normal", "lognormal", "sparse", "denormal", "huge", "constant", "zero")  # finite
EDGES = (*LISTS, "infinite")

calls = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 30),
        "double": st.booleans(),
        "isa": st.sampled_from(_native.instruction_sets()),
        "threads": st.sampled_from([1, 2]),
        "g": st.sampled_from(LISTS),
        "w": st.sampled_from(EDGES),
        "entries": st.integers(1, 9),
        "keep": st.integers(1, 10),
    }
)


def lists(rng: np.random.Generator, pool: str, entries: int, shape: tuple[int, ...], double: bool) -> Array:
    """Draw sorted lists, entries in front, laid out in some way."""
    return strided(-np.sort(-np.abs(numbers(rng, pool, (entries, *shape), double)), 0), rng)


def planes(g: Array) -> list[int]:
    return [address(plane) for plane in g]


def weighed(w: Array, g: Array) -> Array:
    """Give |w|·g; an absent edge is absent beside infinity."""
    with np.errstate(all="ignore"):
        out = np.abs(w) * g
    return np.where((w == 0) | (g == 0), 0, out).astype(g.dtype)


def largest(candidates: Array, keep: int) -> Array:
    """Give the largest of … × candidates, keep × …, zeros where there are fewer."""
    top = -np.sort(-candidates, -1)[..., :keep]
    pad = [(0, 0)] * (top.ndim - 1) + [(0, keep - top.shape[-1])]
    return np.moveaxis(np.pad(top, pad), -1, 0)


def check(
    flags: int, out: Array, candidates: Array, present: Array, keep: int, smallest: float, highest: float
) -> None:
    """Check results against all candidates.

    Args:
        present: which candidates have two ends that are not 0.
        smallest, highest: bounds of all products other than 0, as if the smallest, or the largest, of all factors met.
    """
    want, limits = largest(candidates, keep), np.finfo(out.dtype)
    assert not flags & NAN_SEEN
    if np.isinf(want).any():
        assert flags & TOO_LARGE
    elif highest <= limits.max:
        assert not flags & TOO_LARGE
    lost = (present & (candidates < limits.tiny)).any(-1) & (want[-1] < limits.tiny)
    if lost.any() and not flags & TOO_LARGE:
        assert flags & LOST
    if smallest >= limits.tiny:
        assert not flags & LOST
    if not flags:
        same(out, want)


def least(*arrays: Array) -> float:
    """Multiply the smallest numbers other than 0, in their own precision."""
    out = arrays[0].dtype.type(1)
    for x in arrays:
        size = np.abs(x[x != 0])
        out *= size.min() if size.size else x.dtype.type(np.inf)
    return float(out)


def most(*arrays: Array) -> float:
    """Multiply the largest numbers."""
    with np.errstate(all="ignore"):
        return float(np.prod([np.abs(x).max(initial=0).astype(np.float64) for x in arrays]))


def product(a: Array, w: Array, keep: int, threads: int) -> tuple[int, Array]:
    (_, batch, m, k), n = a.shape, w.shape[1]
    out = np.full((keep, batch, m, n), -7, w.dtype)
    batch_stride, row, column = steps(a[0])
    where = planes(a), batch_stride, [(m, row)], [(k, column)], address(w), steps(w), keep, address(out), threads
    return _native.top_product(w.dtype == np.float64, batch, n, *where), out


@given(call=calls, sizes=st.tuples(st.integers(0, 3), st.integers(0, 19), st.integers(0, 70), st.integers(0, 40)))
@examples(300)
def test_products(call, sizes):
    (batch, m, n, k), keep = sizes, call["keep"]
    rng = np.random.default_rng(call["seed"])
    a = lists(rng, call["g"], call["entries"], (batch, m, k), call["double"])
    w = strided(numbers(rng, call["w"], (batch, n, k), call["double"]), rng)
    with instruction_set(call["isa"]), np.errstate(all="ignore"):
        flags, out = product(a, w, keep, call["threads"])
        lined = np.moveaxis(a, 0, -1)[:, :, None]  # batch × m × 1 × k × entries
        every = weighed(w[:, None, :, :, None], lined).reshape(batch, m, n, k * len(a))
        present = ((w[:, None, :, :, None] != 0) & (lined != 0)).reshape(every.shape)
        check(flags, out, every, present, keep, least(a, w), most(a, w))


@pytest.mark.parametrize("isa", _native.instruction_sets())
@pytest.mark.parametrize("entries", [1, 3])
def test_an_infinite_edge_is_told_whatever_lies_beside_it(isa, entries):
    a, w = np.ones((entries, 1, 1, 1)), np.full((1, 8, 1), np.inf)
    with instruction_set(isa):
        assert product(a, w, 5, 1)[0] == TOO_LARGE


@pytest.mark.parametrize("isa", _native.instruction_sets())
@pytest.mark.parametrize("entries", [1, 8])
@pytest.mark.parametrize("double", [False, True])
def test_a_long_product_leaves_most_candidates_out_and_is_exact(isa, entries, double):
    rng = np.random.default_rng(0)
    a = lists(rng, "lognormal", entries, (1, 9, 1500), double)
    w = numbers(rng, "normal", (1, 140, 1500), double)
    with instruction_set(isa):
        flags, out = product(a, w, 8, 2)
    every = weighed(w[0, None, :, :, None], np.moveaxis(a[:, 0], 0, -1)[:, None]).reshape(9, 140, -1)
    assert flags == 0
    same(out[:, 0], largest(every, 8))


@pytest.mark.parametrize("isa", _native.instruction_sets())
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_weights_far_apart_are_ordered(isa, kind):
    a = np.exp2(np.linspace(np.log2(np.finfo(kind).tiny) / 2, 0, 900)).astype(kind)[None, None, None]
    w = np.ones((1, 3, 900), kind)
    with instruction_set(isa):
        flags, out = product(a, w, 900, 1)
    assert flags == 0
    same(out[:, 0, 0, 0], a[0, 0, 0, ::-1])


@given(
    call=calls, rank=st.sampled_from([1, 2]), sizes=st.tuples(st.integers(1, 2), st.integers(0, 4), st.integers(1, 50))
)
@examples(300)
def test_rows(call, rank, sizes):
    (batch, rows, n), keep, double = sizes, call["keep"], call["double"]
    rng = np.random.default_rng(call["seed"])
    g = lists(rng, call["g"], call["entries"], (batch, rows, n), double)
    own, *sides = (strided(numbers(rng, call["w"], (rows, n), double), rng) for _ in range(1 + 2 * rank))
    left, right = sides[:rank], sides[rank:]
    out = np.full((keep, batch, rows, n), -7, g.dtype)
    factors = [own, *left, *right]
    given_ = [address(f) for f in factors], [[0, *steps(f)] for f in factors]
    with instruction_set(call["isa"]):
        where = planes(g), steps(g[0]), *given_, keep, address(out), call["threads"]
        flags = _native.top_low_rank(double, batch, rows, n, *where)
    with np.errstate(all="ignore"):
        if any(np.isinf(f).any() for f in factors):
            assert flags & TOO_LARGE
            return
        lined = np.moveaxis(g, 0, -1)
        every, present = candidates_of_rows(lined, own, left, right)
        beside = [least(g, left[0]), least(g, left[0], right[0])] if rank == 1 else [0.0]  # sums of two may cancel
        highest = max(most(g, own), *(2 * most(g, x, r) for x, r in zip(left, right, strict=True)))
        highest = max(highest, *(2 * most(x, r) for x, r in zip(left, right, strict=True)), most(g, left[0]))
        check(flags, out, every, present, keep, min(least(g, own), *beside), highest)


def candidates_of_rows(g: Array, own: Array, left: list[Array], right: list[Array]) -> tuple[Array, Array]:
    """Write the Jacobians out: batch × rows × j × (i and entries)."""
    (batch, rows, n, entries), eye = g.shape, np.eye(own.shape[-1], dtype=bool)
    if len(left) == 1:
        inner = weighed(left[0][None, :, :, None], g)[:, :, None]  # batch × rows × 1 × i × entries
        beside = weighed(right[0][None, :, :, None, None], inner)
        edge = (left[0][:, None, :] != 0) & (right[0][:, :, None] != 0)
    else:
        jacobian = sum(r[:, :, None] * x[:, None, :] for x, r in zip(left, right, strict=True))
        beside = weighed(jacobian[None, ..., None], g[:, :, None])
        edge = jacobian != 0
    diagonal = weighed(own[None, :, :, None], g)[:, :, None]
    every = np.where(eye[:, :, None], diagonal, beside)
    edge = np.where(eye, (own != 0)[:, None, :], edge)
    present = edge[None, ..., None] & (g != 0)[:, :, None]
    return every.reshape(batch, rows, n, n * entries), present.reshape(batch, rows, n, n * entries)


@given(call=calls, n=st.integers(0, 9000))
@examples(150)
def test_weighing(call, n):
    rng = np.random.default_rng(call["seed"])
    g = np.ascontiguousarray(lists(rng, call["g"], call["entries"], (n,), call["double"]))
    w = numbers(rng, call["w"], (n,), call["double"])
    out = np.full_like(g, -7)
    with instruction_set(call["isa"]):
        flags = _native.top_weigh(call["double"], n, planes(g), address(w), address(out), call["threads"])
    want = weighed(w, g)
    assert bool(flags & TOO_LARGE) == bool(np.isinf(want).any() or np.isinf(w).any())
    assert bool(flags & LOST) == bool(((want < np.finfo(g.dtype).tiny) & (w != 0) & (g != 0)).any())
    if not flags:
        same(out, want)


@given(call=calls, n=st.integers(0, 9000), more=st.integers(1, 9), in_place=st.booleans())
@examples(150)
def test_merging(call, n, more, in_place):
    rng = np.random.default_rng(call["seed"])
    a = np.ascontiguousarray(lists(rng, call["g"], call["entries"], (n,), call["double"]))
    b = np.ascontiguousarray(lists(rng, "sparse" if in_place else "integers", more, (n,), call["double"]))
    keep = call["entries"] if in_place else min(call["keep"], len(a) + len(b))
    keep = max(keep, call["entries"])
    want = largest(np.concatenate([a, b]).T, keep)
    out = a if in_place else np.full((keep, n), -7, a.dtype)
    with instruction_set(call["isa"]):
        _native.top_merge(call["double"], n, planes(a), planes(b), planes(out), call["threads"])
    same(out, want)


@given(call=calls, rows=st.integers(0, 40), n=st.integers(0, 60), along=st.booleans())
@examples(200)
def test_reductions(call, rows, n, along):
    rng = np.random.default_rng(call["seed"])
    shape = (rows, 2 * n + 1) if along else (n, 2 * rows + 1)
    g = np.ascontiguousarray(lists(rng, call["g"], call["entries"], shape, call["double"]))[..., : shape[1] // 2]
    g = g if along else g.swapaxes(1, 2)  # entries × rows × n
    out = np.full((call["keep"], rows), -7, g.dtype)
    with instruction_set(call["isa"]):
        where = planes(g), *steps(g[0]), call["keep"], address(out), call["threads"]
        _native.top_reduce(call["double"], rows, n, *where)
    same(out, largest(np.moveaxis(g, 0, -1).reshape(rows, n * len(g)), call["keep"]))


@given(call=calls, rows=st.integers(0, 3), n=st.integers(0, 40), size=st.integers(1, 9), apart=st.booleans())
@examples(150)
def test_segments(call, rows, n, size, apart):
    rng = np.random.default_rng(call["seed"])
    g = lists(rng, call["g"], call["entries"], (rows, n), call["double"])
    index = rng.integers(0, size, (rows if apart else 1, n))
    out = np.zeros((call["keep"], rows, size), g.dtype)
    with instruction_set(call["isa"]):
        where = planes(g), [0, *steps(g[0])], address(index), n if apart else 0
        used = _native.top_segment(call["double"], rows, n, *where, size, call["keep"], address(out))
    mine = index[:, None, :] == np.arange(size)[:, None]  # rows × size × n
    every = np.where(mine, g[:, :, None], 0)
    want = largest(np.moveaxis(every, 0, -1).reshape(rows, size, n * len(g)), call["keep"])
    same(out, want)
    assert used == (want > 0).any((1, 2)).sum()


@given(call=calls, batch=st.integers(0, 3), rows=st.integers(0, 4), n=st.integers(0, 9))
@examples(150)
def test_depths(call, batch, rows, n):
    rng = np.random.default_rng(call["seed"])
    g = lists(rng, call["g"], call["entries"], (batch, rows, n), call["double"])
    batch_stride, row, column = steps(g[0])
    where = planes(g), batch_stride, [(rows, row)], [(n, column)]
    found = _native.top_depth(call["double"], batch, *where, call["keep"])
    assert found == min(call["keep"], (g > 0).sum((0, -1)).max(initial=0))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_a_nan_is_told(isa, double):
    kind = np.float64 if double else np.float32
    g = np.ones((2, 1, 3, 5), kind)
    w = np.ones((1, 4, 5), kind)
    w[0, 3, 2] = np.nan
    row = np.full((3, 5), np.nan, kind)
    out = np.zeros((2, 1, 3, 5), kind)
    with instruction_set(isa):
        assert product(g, w, 2, 1)[0] & NAN_SEEN
        factors = [address(row)] * 3, [[0, *steps(row)]] * 3
        assert _native.top_low_rank(double, 1, 3, 5, planes(g), steps(g[0]), *factors, 2, address(out), 1) & NAN_SEEN
        assert _native.top_weigh(double, 15, planes(g), address(row), address(out), 1) & NAN_SEEN


def test_factors_come_in_threes_or_fives():
    g, out = np.ones((1, 1, 1, 2)), np.zeros((1, 1, 1, 2))
    with pytest.raises(ValueError, match="rank one or two"):
        _native.top_low_rank(
            True, 1, 1, 2, planes(g), steps(g[0]), [address(g)] * 4, [[0, 2, 1]] * 4, 1, address(out), 1
        )
