"""The native (max, ×) product against brute force in the same precision, bit for bit."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from native_operands import examples
from native_operands import native as _native

NAN_SEEN, LOST = 1, 2
SETS = _native.instruction_sets()
VARIANTS = ["automatic", "direct", "pruned", "pruned_typical", "pruned_swapped", "pruned_sorted"]
LAYOUTS = ["rows", "columns", "stepped", "reversed", "repeated"]


@pytest.fixture(autouse=True)
def _as_it_was():
    before = _native.instruction_set()
    yield
    _native.use_instruction_set(before)
    _native.use_variant("automatic")


def brute_force(a, w):
    """Products rounded to the operands' type, an edge with a zero end left out, the smallest k that wins."""
    best = np.zeros((a.shape[0], a.shape[1], w.shape[1]), a.dtype)
    arg = np.full(best.shape, -1, np.int32)
    lost = np.zeros(best.shape, bool)
    won, edge, p = np.empty_like(lost), np.empty_like(lost), np.empty_like(best)
    with np.errstate(all="ignore"):
        for k in range(a.shape[2]):  # in place: a sanitizer's allocator is slow
            x, y = a[:, :, None, k], np.abs(w[:, None, :, k])
            np.logical_and(x, y, out=edge)
            lost |= edge
            np.multiply(x, y, out=p)
            np.logical_and(np.greater(p, best, out=won), edge, out=won)
            np.copyto(best, p, where=won)
            np.copyto(arg, k, where=won)
    lost &= best < np.finfo(a.dtype).tiny
    positive = best[best > 0]
    summary = (best.max(initial=0), positive.min(initial=np.inf), LOST if lost.any() else 0)
    return best, arg, summary


def native(a, w, prepared=False, threads=1, values_only=False, short=False):
    is_double = a.dtype == np.float64
    (batch, m, k), n = a.shape, w.shape[1]
    a_strides, w_strides = ([s // x.itemsize for s in x.strides] for x in (a, w))
    out = np.full((batch, m, n), -7, a.dtype)
    arg = np.full((batch, m, n), -9, np.int16 if short else np.int32)
    packed = _native.prepare(is_double, batch, n, k, w.ctypes.data, *w_strides) if prepared else None
    summary = _native.max_product(
        is_double, batch, m, n, k, a.ctypes.data, *a_strides, w.ctypes.data, *w_strides,
        out.ctypes.data, 0 if values_only else arg.ctypes.data, packed, threads, short,
    )  # fmt: skip
    return out, arg, summary


def check(a, w, hows, variants=VARIANTS):
    """Every instruction set and every variant give what brute force gives."""
    best, arg, summary = brute_force(a, w)
    for instruction_set, variant, how in itertools.product(SETS, variants, hows):
        _native.use_instruction_set(instruction_set)
        _native.use_variant(variant)
        found = native(a, w, **how)
        where = f"{instruction_set} {variant} {how}"
        np.testing.assert_array_equal(found[0], best, where)
        np.testing.assert_array_equal(found[1], -9 if how.get("values_only") else arg, where)
        assert found[2] == summary, where


def dead(rng, x, dtype):
    """Whole rows and whole k's of zeros."""
    return x * ((rng.random((*x.shape[:2], 1)) < 0.7) & (rng.random((*x.shape[:1], 1, x.shape[2])) < 0.7))


def outlier(rng, x, dtype):
    """One number of each row far above the others, as among the derivatives of a softmax."""
    x = 1 + 0.1 * x
    if x.size:
        np.put_along_axis(x, rng.integers(x.shape[-1], size=(*x.shape[:2], 1)), 1e4, -1)
    return x


def infinite(rng, x, dtype):
    return np.where(rng.random(x.shape) < 0.02, np.inf, np.where(rng.random(x.shape) < 0.3, 0, x))


CONTENTS = {
    "gauss": lambda rng, x, dtype: x,
    "heavy": lambda rng, x, dtype: x * np.exp(2 * rng.standard_normal(x.shape)),
    "integers": lambda rng, x, dtype: rng.integers(-3, 4, x.shape),
    "sparse": lambda rng, x, dtype: x * (rng.random(x.shape) < 0.05),
    # full rows and empty ones
    "uneven": lambda rng, x, dtype: x * (rng.random(x.shape) < rng.random((*x.shape[:2], 1))),
    "denormal": lambda rng, x, dtype: x * float(np.finfo(dtype).tiny) ** 0.5,
    # products overflow here and underflow there
    "wide": lambda rng, x, dtype: x * np.exp2(rng.uniform(-1, 1, x.shape) * np.finfo(dtype).maxexp * 0.95),
    "infinite": infinite,
    "equal": lambda rng, x, dtype: np.ones(x.shape),
    "outlier": outlier,
    "dead": dead,
}


def contents(kind, rng, shape, dtype):
    return CONTENTS[kind](rng, rng.standard_normal(shape), dtype).astype(dtype)


def laid_out(x, layout):
    """The same numbers at other strides; `repeated` is other numbers: its rows are one row."""
    if layout == "columns":
        return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
    if layout == "stepped":
        room = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)  # what lies between isn't to be read
        room[..., ::2] = x
        return room[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1]
    if layout == "repeated" and x.shape[1]:
        return np.broadcast_to(x[:, :1], x.shape)
    return np.ascontiguousarray(x)


def operands(seed, shape, dtype, a_kind, w_kind, a_layout="rows", w_layout="rows"):
    batch, m, n, k = shape
    rng = np.random.default_rng(seed)
    a = laid_out(np.abs(contents(a_kind, rng, (batch, m, k), dtype)), a_layout)
    return a, laid_out(contents(w_kind, rng, (batch, n, k), dtype), w_layout)


shapes = st.tuples(
    st.sampled_from([1, 1, 2, 5]),
    st.sampled_from([0, 1, 3, 16, 17, 40]),
    st.sampled_from([0, 1, 2, 15, 33, 64, 70, 130]),
    st.sampled_from([0, 1, 5, 16, 63, 128, 130, 300]),
)


@examples(60)
@given(
    st.integers(0, 2**32), shapes, st.sampled_from([np.float32, np.float64]), st.sampled_from([*CONTENTS]),
    st.sampled_from([*CONTENTS]), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS),
)  # fmt: skip
@example(0, (1, 40, 70, 300), np.float32, "wide", "wide", "rows", "rows")
@example(0, (1, 40, 70, 300), np.float32, "integers", "integers", "columns", "columns")
@example(0, (1, 17, 33, 300), np.float64, "denormal", "sparse", "stepped", "reversed")
def test_every_way_gives_what_brute_force_gives(seed, shape, dtype, a_kind, w_kind, a_layout, w_layout):
    a, w = operands(seed, shape, dtype, a_kind, w_kind, a_layout, w_layout)
    check(a, w, [{"threads": 1}, {"threads": 3, "short": True}, {"threads": 2, "prepared": True}])


@pytest.mark.parametrize(("a_kind", "w_kind"), [("gauss", "gauss"), ("integers", "heavy"), ("sparse", "equal")])
def test_several_chunks_of_k_and_strips_of_rows(a_kind, w_kind):
    a, w = operands(1, (1, 50, 140, 4500), np.float32, a_kind, w_kind, "columns")
    check(a, w, [{"threads": 2, "short": True}, {"threads": 1, "prepared": True}])


@pytest.mark.parametrize(
    ("a_kind", "w_kind"),
    [
        ("gauss", "gauss"),
        ("gauss", "heavy"),
        ("uneven", "uneven"),
        ("gauss", "equal"),
        ("outlier", "gauss"),
        ("gauss", "outlier"),
    ],
)
def test_large_enough_to_be_tried_out(a_kind, w_kind):
    a, w = operands(2, (1, 400, 500, 400), np.float32, a_kind, w_kind)
    check(a, w, [{"threads": 2}, {"threads": 2, "short": True}], ["automatic"])


def test_batches_are_shared_among_threads():
    a, w = operands(3, (24, 32, 64, 130), np.float32, "gauss", "gauss")
    check(a, w, [{"threads": threads, "prepared": prepared} for threads in (1, 2, 3) for prepared in (False, True)])


@pytest.mark.parametrize("shape", [(32, 32, 32, 32), (96, 16, 16, 32), (40, 17, 33, 30), (20, 30, 5, 200)])
def test_small_products_of_a_batch(shape):
    """Of so few columns that half of a block holds them; together they are worth a second thread."""
    a, w = operands(5, shape, np.float32, "gauss", "integers", "columns", "rows")
    check(a, w, [{"threads": 1}, {"threads": 2}], ["automatic", "direct"])


def test_values_only_leaves_the_indices_alone():
    a, w = operands(4, (2, 20, 70, 300), np.float32, "gauss", "gauss")
    check(a, w, [{"values_only": True}])


def test_the_smallest_k_wins_a_tie():
    a, w = np.ones((1, 20, 400), np.float32), np.ones((1, 70, 400), np.float32)
    a[..., 0] = 0.5
    for variant in VARIANTS:
        _native.use_variant(variant)
        assert (native(a, w)[1] == 1).all()


def test_a_product_that_overflows_ties_with_one_that_is_infinite():
    big = np.float32(3e38)
    a, w = np.ones((1, 16, 200), np.float32), np.ones((1, 64, 200), np.float32)
    a[..., 100], w[..., 100] = big, big
    a[..., 150] = np.inf
    for variant in VARIANTS:
        _native.use_variant(variant)
        best, arg, _ = native(a, w)
        assert np.isinf(best).all()
        assert (arg == 100).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nan_anywhere_is_flagged(instruction_set, variant, dtype):
    _native.use_instruction_set(instruction_set)
    _native.use_variant(variant)
    for where, at in itertools.product("aw", [(0, 0, 0), (0, -1, -1), (0, 7, 131)]):
        a, w = operands(5, (1, 20, 70, 150), dtype, "gauss", "gauss")
        assert native(a, w)[2][2] & NAN_SEEN == 0
        (a if where == "a" else w)[at] = np.nan
        for prepared in (False, True):
            assert native(a, w, prepared=prepared)[2][2] & NAN_SEEN


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("instruction_set", SETS)
def test_only_an_edge_that_exists_can_be_lost(instruction_set, variant):
    _native.use_instruction_set(instruction_set)
    _native.use_variant(variant)
    # rows and columns that share no k: all zero, nothing lost
    a, w = np.zeros((1, 20, 200), np.float32), np.zeros((1, 70, 200), np.float32)
    a[..., :100], w[..., 100:] = 1, 1
    assert native(a, w)[2] == (0, np.inf, 0)
    # one meeting whose product rounds to zero, beside many that are fine elsewhere
    a[0, 3, 100], w[0, 5, 100] = 1e-30, 1e-30
    w[0, [j for j in range(70) if j != 5], 100] = 1
    assert native(a, w)[2][2] == LOST
    a[0, 3, 100] = 1e-7  # 1e-37: small, yet normal
    assert native(a, w)[2][2] == 0


def test_prepared_for_other_sizes_is_refused():
    a, w = operands(6, (1, 4, 6, 20), np.float32, "gauss", "gauss")
    packed = _native.prepare(False, 1, 6, 19, w.ctypes.data, 0, 20, 1)
    with pytest.raises(ValueError, match="prepared for"):
        _native.max_product(False, 1, 4, 6, 20, a.ctypes.data, 0, 20, 1, w.ctypes.data, 0, 20, 1, 0, 0, packed, 1)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match="portable"):
        _native.use_instruction_set("z80")
    with pytest.raises(ValueError, match="automatic, direct, pruned, pruned_typical, pruned_swapped, pruned_sorted"):
        _native.use_variant("guess")


def test_weights_that_vanish_when_scaled_still_win():
    """A column's scale can take a weight below the smallest number; beside a huge element of `a` it may win."""
    a, w = np.zeros((1, 16, 200), np.float32), np.zeros((1, 64, 200), np.float32)
    w[..., 0] = 2.0**75  # sets the columns' scale; no row has an edge there
    a[..., 50], w[..., 50] = 4, 1
    a[..., 150], w[..., 150] = 2.0**100, 2.0**-95
    check(a, w, [{"threads": 1}])
